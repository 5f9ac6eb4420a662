"""What a host is told on standard input: its configuration, what stands beside it, and where it needs one, a join token."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Told:
    """`config` is the node's configuration (None: what is there stays), `token` a join token, `files` what stands beside the
    configuration by its path there (allowlist entries, an authority's certificate)."""

    config: str | None = None
    token: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, content: bytes) -> "Told":
        """From JSON; raises ValueError."""
        found = json.loads(content or b"{}")
        files = found.get("files") or {}
        if any(Path(one).is_absolute() or ".." in Path(one).parts for one in files):
            raise ValueError("a file beside the configuration has a path that leaves its directory")
        return cls(found.get("config"), found.get("token"), dict(files))
