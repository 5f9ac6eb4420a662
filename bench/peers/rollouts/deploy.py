"""The steps of `ostler fleet update` on a host, as far as pyinfra has them: no lock, no drain, no watcher that goes back."""

from pyinfra import host
from pyinfra.facts.files import Directory, Link
from pyinfra.operations import files, server, systemd

release, units = host.data.release, "/etc/systemd/system"
target = f"releases/{release}"

if host.get_fact(Directory, f"/opt/ostler/{target}/units") is None:
    files.put(name="upload", src=host.data.bundle, dest=f"/var/tmp/{release}.bundle", mode="600")
    files.put(name="upload what unpacks it", src=host.data.program, dest="/var/tmp/ostler-host.pyz", mode="600")
    server.shell(
        name="verify and unpack",
        commands=f"python3 -I /var/tmp/ostler-host.pyz install --bundle /var/tmp/{release}.bundle --digest {host.data.digest}",
    )
for unit in ("ostler-node.service", "ostler-keeper.service", "ostler-watch.service"):
    files.put(name=unit, src=f"{host.data.units}/{unit}", dest=f"{units}/{unit}", mode="644")
files.put(name="configuration", src=f"{host.data.configs}/{host.name}.yaml", dest="/etc/ostler/node.yaml", mode="644")
moves = (host.get_fact(Link, "/opt/ostler/current") or {}).get("link_target") != target
files.link(name="link", path="/opt/ostler/current", target=target)
if moves:
    systemd.service(name="restart", service="ostler-node.service", restarted=True, daemon_reload=True)
server.script(name="wait until it is good", src=host.data.wait, args=(release,))
