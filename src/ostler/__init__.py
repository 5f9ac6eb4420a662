"""Ostler looks after hosts: one fleet out of the machines that people own or rent.

Programs start with `ostler.Client`, `ostler.AsyncClient` or `ostler.Executor`. They are loaded when they are first named: daemons
import this package too, and need none of them.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers take it for true; the module `typing` would cost the keeper a third of a megabyte
if TYPE_CHECKING:
    from ostler.sdk import (
        AsyncClient,
        AsyncJob,
        CallFuture,
        Client,
        CoordinatorUnreachable,
        Executor,
        InvalidSpec,
        JobFailed,
        JobFuture,
        JobView,
        NotFound,
        OstlerError,
        Rejected,
        RemoteError,
        Unavailable,
    )

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "CallFuture",
    "Client",
    "CoordinatorUnreachable",
    "Executor",
    "InvalidSpec",
    "JobFailed",
    "JobFuture",
    "JobView",
    "NotFound",
    "OstlerError",
    "Rejected",
    "RemoteError",
    "Unavailable",
    "__version__",
]


if not TYPE_CHECKING:  # which then know that there are no other names

    def __getattr__(name: str) -> object:
        if name in __all__:
            import importlib

            return getattr(importlib.import_module("ostler.sdk"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
