"""A table of our own in the host's nftables: tried, put in force, and there again after a reboot; or taken away."""

import contextlib
import subprocess
from pathlib import Path
from typing import Any

from ostler.fleet.host import accounts, setting_up, systemd
from ostler.fleet.host.places import FIREWALL_UNIT, Places, write
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.traces import Traces

TABLE = ("inet", "ostler")
PROGRAMS = ("/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft")
PATIENCE_S = 30.0
_UNIT = """\
# Who may reach the node's health port. Written by `ostler fleet firewall`.
[Unit]
Description=Ostler firewall of the node's health port
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
After=nftables.service local-fs.target
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {rules}
ExecReload={nft} -f {rules}
ExecStop=-{nft} delete table inet ostler

[Install]
WantedBy=multi-user.target
"""


def close(places: Places, *, port: int, ssh_port: int, rules: str) -> dict[str, Any]:
    """Put `rules` in force for the port of the daemon's health, now and after each boot. Raises Refused; what is refused has changed
    nothing."""
    setting_up.require(places)
    nft = _nft()
    with setting_up.alone(places):
        _check_port(port, ssh_port)
        _try(nft, rules, places)
        traces = Traces(places)
        unit = _UNIT.format(nft=nft, rules=places.rules)
        traces.directory(places.rules.parent, mode=0o755)
        changed = [str(path) for path, content in ((places.rules, rules), (places.units / FIREWALL_UNIT, unit))
                   if traces.file(path, content.encode())]  # fmt: skip
        traces.expect(places.units / "multi-user.target.wants" / FIREWALL_UNIT)
        if changed:
            systemd.act("daemon-reload")
        if not _is_in_force(nft) or changed:
            systemd.act("enable", FIREWALL_UNIT)
            systemd.act("restart", FIREWALL_UNIT)
            changed.append("rules in force")
    return {"changed": changed, "port": port}


def open_again(places: Places) -> dict[str, Any]:
    """Take away what `close` made; answers what was there."""
    setting_up.require(places)
    with setting_up.alone(places):
        removed = []
        if systemd.show(FIREWALL_UNIT, "LoadState")["LoadState"] == "loaded":
            systemd.act("stop", FIREWALL_UNIT)
            systemd.act("disable", FIREWALL_UNIT)
        with contextlib.suppress(Refused):
            if _is_in_force(nft := _nft()):  # somebody stopped its unit in another way
                _run(nft, "delete", "table", *TABLE)
                removed.append("rules in force")
        for path in (places.units / FIREWALL_UNIT, places.rules):
            if path.exists():
                path.unlink()
                removed.append(str(path))
        systemd.act("daemon-reload")
    return {"changed": removed, "port": None}


def _nft() -> str:
    found = next((one for one in PROGRAMS if Path(one).is_file()), None)
    if found is None:
        raise Refused("missing", "nft is not on this host: `apt-get install nftables` brings it")
    return found


def _check_port(port: int, ssh_port: int) -> None:
    """Not SSH's, and nobody's but the daemon's."""
    if port in {22, ssh_port}:
        raise Refused("unfit", f"port {port} is the one of SSH: rules for it could lock everybody out")
    own = accounts.identity()
    others = {uid for uid in _listeners(port) if own is None or uid != own[0]}
    if others:
        raise Refused("unfit", f"port {port} is not the daemon's: a program of user {min(others)} listens there")


def _listeners(port: int) -> set[int]:
    """The users whose programs listen on a TCP port (source: proc(5), /proc/net/tcp)."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    found.add(int(words[7]))
    return found


def _try(nft: str, rules: str, places: Places) -> None:
    """What nft would not take is refused before anything is written where it counts."""
    trial = places.updates / "firewall.trial"
    write(trial, rules.encode(), mode=0o600)
    try:
        _run(nft, "--check", "--file", str(trial))
    finally:
        trial.unlink(missing_ok=True)


def _is_in_force(nft: str) -> bool:
    try:
        return "chain health" in _run(nft, "list", "table", *TABLE)
    except Refused:
        return False


def _run(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Refused("unfit", f"{argv[0]}: {exc}") from None
    if done.returncode:
        raise Refused("unfit", f"nft: {done.stderr.strip()[-300:] or f'exit code {done.returncode}'}")
    return done.stdout
