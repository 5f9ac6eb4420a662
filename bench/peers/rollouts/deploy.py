"""The steps of `ostler fleet update` on a host, as far as pyinfra has them: no lock, no drain, no watcher that goes back."""

from pyinfra import host
from pyinfra.facts.files import Directory, Link
from pyinfra.operations import files, server, systemd

release, units = host.data.release, "/etc/systemd/system"
target = f"releases/{release}"

if host.get_fact(Directory, f"/opt/ostler/{target}/units") is None:
    bundle, pip = f"/var/tmp/{release}.bundle", f"/var/tmp/{host.data.pip.rpartition('/')[2]}"
    files.directory(name="a directory for it", path=f"/opt/ostler/{target}", mode="755")
    files.put(name="upload", src=host.data.bundle, dest=bundle, mode="600")
    files.put(name="upload what installs wheels", src=host.data.pip, dest=pip, mode="644")
    server.shell(
        name="unpack, and install the wheels into a virtual environment",
        commands=[
            f"tar -xf {bundle} -C /opt/ostler/{target} && rm {bundle}",
            f"python3 -m venv --without-pip /opt/ostler/{target}",
            f"cd /opt/ostler/{target} && bin/python {pip}/pip install --quiet --no-index --no-deps wheels/*.whl",
        ],
    )
for unit in ("ostler-node.service", "ostler-keeper.service", "ostler-watch.service"):
    files.put(name=unit, src=f"{host.data.units}/{unit}", dest=f"{units}/{unit}", mode="644")
files.put(name="configuration", src=f"{host.data.configs}/{host.name}.yaml", dest="/etc/ostler/node.yaml", mode="644")
moves = (host.get_fact(Link, "/opt/ostler/current") or {}).get("link_target") != target
files.link(name="link", path="/opt/ostler/current", target=target)
if moves:
    systemd.service(name="restart", service="ostler-node.service", restarted=True, daemon_reload=True)
server.script(name="wait until it is good", src=host.data.wait, args=(release,))
