"""What coordinators on one database must have in common: their keys and the directory of artifacts, known by a mark in the database."""

from ostler.coordinator.store.tx import Tx
from ostler.model.errors import Rejected

KEYS, SECRETS, ARTIFACTS = "keys", "secrets", "artifacts"
_OTHERS = {
    KEYS: (
        "this coordinator has other keys than the one that made the database: nodes and tokens of one would not be known to the other",
        "copy the directory keys/ of a coordinator that runs on it into this one's data directory, in place of the one there",
    ),
    SECRETS: (
        "this coordinator has another key for secrets than the one that made the database",
        "copy keys/secrets.key of a coordinator that runs on it, or give the same `secrets.key_command`",
    ),
    ARTIFACTS: (
        "this coordinator sees another directory of artifacts than those that run on the database",
        "set `artifacts` in coordinator.yaml to one directory that all coordinators see, such as one on NFS",
    ),
}


def join_installation(tx: Tx, marks: dict[str, str]) -> None:
    """Compare what this coordinator has with what the first one had, who leaves its marks. Raises Rejected where they differ."""
    found: dict[str, str] = dict(tx.rows("SELECT key, value FROM meta"))
    for key, mark in marks.items():
        if key not in found:
            tx.run("INSERT INTO meta (key, value) VALUES (?, ?)", (key, mark))
        elif found[key] != mark:
            message, hint = _OTHERS[key]
            raise Rejected(message, hint=hint)
