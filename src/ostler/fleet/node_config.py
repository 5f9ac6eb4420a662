"""A host's node configuration, rendered from what the inventory says of it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ostler.fleet.inventory.host import Host
from ostler.model.errors import InvalidSpec, Problem

CA = "ca.pem"
CONFIG_DIR = "/etc/ostler"
CANARY = {  # what an update's canary job executes
    "allowlist.d/ostler-canary.yaml": "# Does nothing: jobs that prove that this node runs jobs.\ncommand: {path: /usr/bin/true}\n"
}
_HEAD = "# Rendered from the inventory of hosts: `ostler fleet install` and `ostler fleet update` write it anew.\n"

_MOST_KEYS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What is one host's alone: its configuration (None: what is there stays), and files that stand beside it."""

    config: str | None
    files: Mapping[str, str] = field(default_factory=dict)


def render(host: Host, *, coordinator: str, own_ca: bool) -> str:
    """node.yaml as text. `coordinator` is the URL of its API as the host reaches it; `own_ca`: the certificate of its authority is
    installed beside, and alone believed.

    The variable `services` of the host (or of its groups) is that section of the node's configuration; `node` has others, which go over
    what is made here. Region and labels become tags: `region.eu`, `rack.7`. Raises InvalidSpec where `node` has no sections.
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
    if services := host.vars.get("services"):
        base["services"] = services
    own = host.vars.get("node") or {}
    if not isinstance(own, Mapping):
        raise InvalidSpec(
            f"the node's configuration that the inventory makes for {host.name} is not valid",
            [Problem("vars.node", f"must be sections of node.yaml, not {own!r:.40}", host.origin.get("vars.node"))],
        )
    text: str = yaml.safe_dump(_over(base, own), sort_keys=False, allow_unicode=True)
    return _HEAD + text


def services_of(host: Host) -> Any:
    """The section `services` of a host's configuration; nobody has looked whether it is one."""
    own = host.vars.get("node")
    above = own.get("services") if isinstance(own, Mapping) else None
    below = host.vars.get("services") or {}
    return _over(below, above) if isinstance(below, Mapping) and isinstance(above, Mapping) else above or below


def _tags(host: Host) -> list[str]:
    region = [f"region.{host.region}"] if host.region else []
    return [*region, *(f"{name}.{value}" if value else name for name, value in sorted(host.labels.items()))]


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        there = merged.get(name)
        merged[name] = _over(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return merged


def differences(own: Own, *, config: str | None, applied_sha256: str | None, beside: Mapping[str, str | None]) -> list[str]:
    """How a host differs from `own`, one line each. `config` is what it has (None: nothing), `applied_sha256` is of what was put in force
    there last, `beside` are the hashes of what it has beside that."""
    lines = []
    there = None if config is None else digest(config)
    if own.config is not None and there != digest(own.config):
        by_hand = ", edited on the host," if applied_sha256 not in (None, there) else ""
        before = "none" if there is None else there[:8]
        keys = changed_keys(config or "", own.config)
        what = ", ".join(keys[:_MOST_KEYS]) + (f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else "")
        lines.append(f"configuration{by_hand} {before} → {digest(own.config)[:8]}: {what or 'its form alone'}")
    for name, content in sorted(own.files.items()):
        if beside.get(name) != digest(content):
            lines.append(f"{name} {'differs' if name in beside else 'is missing'}")
    return lines


def node_id_of(config: str | None) -> str | None:
    """Whose configuration it is; None where it does not say."""
    found = dict(_settings(config or "")).get("node_id")
    return None if found is None else str(found)


def declares_services(config: str | None) -> bool:
    """Whether there are units in it that the node may be told to start and stop."""
    return any(name.startswith("services.") and name.endswith(".unit") for name, _ in _settings(config or ""))


def changed_keys(before: str, after: str) -> list[str]:
    """The settings, such as `heartbeat.interval_s`, that two configurations do not have in common; never their values."""
    old, new = dict(_settings(before)), dict(_settings(after))
    return sorted(name for name in old.keys() | new.keys() if name not in old or name not in new or old[name] != new[name])


def digest(text: str) -> str:
    """As a host says it of a file."""
    return hashlib.sha256(text.encode()).hexdigest()


def _settings(text: str) -> Iterator[tuple[str, Any]]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    return _flat("", found) if isinstance(found, Mapping) else iter(())


def _flat(above: str, section: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        path = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            yield from _flat(path, value)
        else:
            yield path, value
