"""Which hosts a command is about: the inventories that it names, else those of the variable, else those of the working directory."""

import getpass
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ostler.fleet.inventory.host import Inventory
from ostler.fleet.inventory.load import Sources, load
from ostler.fleet.inventory.select import read_hosts, select
from ostler.model.errors import Rejected

VARIABLE = "OSTLER_INVENTORY"
FILES = ("ostler-fleet.yml", "ostler-fleet.yaml", "config/deploy.yml")
NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for on the command line."""

    inventories: Sequence[str] = ()
    destination: str | None = None
    accessories: bool = False
    groups: Sequence[str] = ()
    hosts: Sequence[str] = ()
    ssh_config: str | None = None


def find_hosts(wanted: Wanted, env: Mapping[str, str] | None = None) -> Inventory:
    """The hosts, with where each value came from; raises Rejected with every mistake in the files.

    Without any inventory the hosts are those that were named.
    """
    env = os.environ if env is None else env
    named = read_hosts(wanted.hosts)
    inventories = list(wanted.inventories) or _found(env)
    if not inventories and not named.entries:
        raise Rejected(
            "no inventory is named, and there is none here",
            hint=f"write {FILES[0]}, or name one by --inventory or {VARIABLE}, or hosts by --host",
        )
    home = Path(env.get("HOME") or Path.home())
    sources = Sources(
        inventories=inventories or [",".join([*wanted.hosts, ""])],
        destination=wanted.destination,
        accessories=wanted.accessories,
        ssh_config=_ssh_config(wanted.ssh_config, home),
        home=home,
        local_user=_local_user(env),
        env=env,
    )
    return select(load(sources), groups=wanted.groups, hosts=list(named.entries.values()))


def absolute(inventories: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """The inventories that such a command reads, as one in another working directory would name them; nothing where it reads none."""
    named = list(inventories) or _found(os.environ if env is None else env)
    return [one if "," in one and not Path(one).exists() else str(Path(one).absolute()) for one in named]


def _found(env: Mapping[str, str]) -> list[str]:
    if env.get(VARIABLE):
        return [one for one in env[VARIABLE].split(os.pathsep) if one]
    return next(([file] for file in FILES if Path(file).exists()), [])


def _ssh_config(named: str | None, home: Path) -> Path | None:
    if named is not None:
        return None if named == NONE else Path(named)
    default = home / ".ssh" / "config"
    return default if default.is_file() else None


def _local_user(env: Mapping[str, str]) -> str:
    try:
        return env.get("USER") or getpass.getuser()
    except (KeyError, OSError):  # an id without a name
        return str(os.getuid())
