"""Core dumps: none of a process that holds secrets, since one would write its memory to a disk."""

import resource


def forbid_core_dumps() -> None:
    """No core file of this process from now on. What it starts inherits that, and may ask for its own back."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
