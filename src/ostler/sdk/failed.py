"""How a job's bad end looks in a program.

These stand beside the error tree, not in it: the tree is about calls that went wrong, and here every call went well. A job that failed
is data, which becomes an exception where somebody asked for its result.
"""

from ostler.model.failures import Failure
from ostler.model.job import JobState
from ostler.protocol.messages import JobView


class JobFailed(Exception):
    """A job failed or expired. `job` is how it ended, `code` its stable failure code (`E_LOST`, `E_DENY`; see the error reference)."""

    def __init__(self, job: JobView) -> None:
        self.job = job
        why = job.failure
        said = f"{why.code.value}: {why.message}" if why is not None else _words(job)
        super().__init__(f"job {job.job_id} {job.state.value}: {said}" if why is not None else f"job {job.job_id} {said}")

    @property
    def job_id(self) -> str:
        """Which job."""
        return self.job.job_id

    @property
    def failure(self) -> Failure | None:
        """Code and message; None where no attempt was made in time."""
        return self.job.failure

    @property
    def code(self) -> str:
        """The failure's code, or the state where there is none: `expired`."""
        return self.job.failure.code.value if self.job.failure is not None else self.job.state.value

    def __reduce__(self) -> tuple[type["JobFailed"], tuple[JobView]]:
        return type(self), (self.job,)


def _words(job: JobView) -> str:
    if job.state is JobState.EXPIRED:
        return "expired: no node took it within its time to live"
    return f"is {job.state.value}"


class RemoteError(Exception):
    """What a function raised on a node, where its own class is not known here; the text names it. The traceback is its cause."""


class RemoteTraceback(Exception):
    """The traceback on the node, as the cause of what is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
