"""The Python SDK: jobs and function calls on the fleet, as futures. Everything here is also a name of `ostler` itself."""

from ostler.model.errors import CoordinatorUnreachable, InvalidSpec, NotFound, OstlerError, Rejected, Unavailable
from ostler.protocol.messages import JobView
from ostler.sdk.aio import AsyncClient, AsyncJob
from ostler.sdk.client import Client, JobFuture
from ostler.sdk.executor import CallFuture, Executor
from ostler.sdk.failed import JobFailed, RemoteError

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
]
