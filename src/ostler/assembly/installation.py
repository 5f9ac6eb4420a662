"""Which coordinator's data a command that works beside it means: out of its options, the environment and the data's own file."""

from collections.abc import Mapping
from pathlib import Path

from ostler.assembly.first_run import default_data
from ostler.assembly.resolve_coordinator import COORDINATOR_PREFIX, resolve_coordinator
from ostler.coordinator.config import CoordinatorConfig, refuse_password
from ostler.runtime.settings import Flag


def find_installation(
    data: Path | None, *, env: Mapping[str, str], config: Path | None = None, store: str | None = None
) -> CoordinatorConfig:
    """The configuration that a coordinator on this data has: `config`, else `coordinator.yaml` in the data directory where there is
    one. Raises InvalidSpec, also for a password in `store`, which was typed.
    """
    said = data or env.get(f"{COORDINATOR_PREFIX}__DATA") or (None if config is not None else default_data(env))
    place = None if said is None else Path(said).absolute()
    own = None if place is None else place / "coordinator.yaml"
    flags = {} if place is None else {"data": Flag(name="--data", value=str(place))}
    if store is not None:
        refuse_password(store)
        flags["store"] = Flag(name="--store", value=store)
    file = config or (own if own is not None and own.exists() else None)
    return resolve_coordinator(file, env=env, flags=flags).value
