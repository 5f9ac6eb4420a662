"""A host's node configuration, rendered from what the inventory says of it."""

from collections.abc import Mapping
from typing import Any

import yaml

from ostler.fleet.inventory.host import Host

CA = "ca.pem"
CONFIG_DIR = "/etc/ostler"
CANARY = {  # what an update's canary job executes
    "allowlist.d/ostler-canary.yaml": "# Does nothing: jobs that prove that this node runs jobs.\ncommand: {path: /usr/bin/true}\n"
}
_HEAD = "# Rendered from the inventory of hosts: `ostler fleet install` and `ostler fleet update` write it anew.\n"


def render(host: Host, *, coordinator: str, own_ca: bool) -> str:
    """node.yaml as text. `coordinator` is the URL of its API as the host reaches it; `own_ca`: the certificate of its authority is
    installed beside, and alone believed.

    The variable `node` of the host (or of its groups) has sections of the node's configuration, which go over what is made here. Region
    and labels become tags: `region.eu`, `rack.7`.
    """
    base: dict[str, Any] = {
        "node_id": host.name,
        "tags": _tags(host),
        "coordinator": {"base_url": coordinator} | ({"ca_file": f"{CONFIG_DIR}/{CA}"} if own_ca else {}),
        "runners": {"cli": {"enable": True, "allowlist_dir": f"{CONFIG_DIR}/allowlist.d"}},
        "workspace": {"root": "/var/lib/ostler/jobs"},
        "sandbox": {"level": "bwrap"},
        "state_dir": "/var/lib/ostler/node",
    }
    own = host.vars.get("node")
    text: str = yaml.safe_dump(_over(base, own if isinstance(own, Mapping) else {}), sort_keys=False, allow_unicode=True)
    return _HEAD + text


def _tags(host: Host) -> list[str]:
    region = [f"region.{host.region}"] if host.region else []
    return [*region, *(f"{name}.{value}" if value else name for name, value in sorted(host.labels.items()))]


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        there = merged.get(name)
        merged[name] = _over(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return merged
