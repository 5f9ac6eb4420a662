#!/bin/sh
# Makes the root file system in $1 a host: two people with a key, host keys of its own, nothing that a container cannot have.
set -eu
root=$1
in_root() { chroot "$root" "$@"; }

for user in deploy plain; do in_root useradd --create-home --shell /bin/bash "$user"; done
echo 'deploy ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/deploy"
chmod 0440 "$root/etc/sudoers.d/deploy"

# One key opens all accounts; it is mounted when the host is started. Passwords open none.
mkdir -p "$root/etc/testbed"
cat >"$root/etc/ssh/sshd_config.d/testbed.conf" <<'END'
AuthorizedKeysFile /etc/testbed/authorized_keys .ssh/authorized_keys
PasswordAuthentication no
PermitRootLogin prohibit-password
UseDNS no
END

# A host key of its own at the first start, as after the installation of a machine.
rm -f "$root"/etc/ssh/ssh_host_*
cat >"$root/etc/systemd/system/testbed-hostkey.service" <<'END'
[Unit]
Description=Make the host key of a new host
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -C "" -f /etc/ssh/ssh_host_ed25519_key
[Install]
WantedBy=ssh.service
END
in_root systemctl enable testbed-hostkey.service

# What needs a console, a device or a cloud, or would begin to work by itself in the middle of a test.
in_root systemctl mask systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
    getty.target console-getty.service systemd-networkd.service systemd-resolved.service systemd-timesyncd.service \
    systemd-networkd-wait-online.service systemd-modules-load.service systemd-sysctl.service \
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer
in_root systemctl set-default multi-user.target
mkdir -p "$root/etc/cloud"
touch "$root/etc/cloud/cloud-init.disabled"

# Not part of a host: how this image was made. It has no package sources, so that nothing can be installed behind a test's back.
rm -f "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/* "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/hostname"
: >"$root/etc/machine-id"
rm -rf "$root"/var/log/apt "$root"/var/log/*.log "$root"/var/cache/debconf/*-old
