"""The environment of an attempt, built from nothing: neither the daemon's nor the keeper's variables reach a job."""

import re
from collections.abc import Iterable

from ostler.model.manifest import Manifest
from ostler.node.gpus import gpu_environment
from ostler.node.runners.gate import proxy_environment
from ostler.protocol.ports import AttemptTask

PATH = "/usr/local/bin:/usr/bin:/bin"
# With these the code that the node's owner trusts would load other code.
_CODE = re.compile(
    r"((LD|DYLD|GLIBC|MALLOC|NODE|GIT|BASH|OSTLER)_.*|PYTHON.*|PERL5.*|PERL_.*|RUBY.*"
    r"|GCONV_PATH|LOCPATH|PATH|HOME|TMPDIR|IFS|ENV|SHELLOPTS|PROMPT_COMMAND)"
)


def environment(task: AttemptTask, *, tmp: str) -> dict[str, str]:
    """All variables of an attempt. The manifest's replace the first ones, never those that say what it is and may use."""
    root, manifest = task.root, task.manifest
    told = task.confidence
    array = {} if manifest.array_index is None else {"INDEX": manifest.array_index, "COUNT": manifest.array_count}
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": f"{root}/work",
        "TMPDIR": tmp,
        **manifest.env,
        **(told.env if told is not None else {}),
        "OSTLER_JOB_ID": task.job_id,
        "OSTLER_ATTEMPT": str(task.attempt),
        "OSTLER_INPUT_DIR": f"{root}/input",
        "OSTLER_OUTPUT_DIR": f"{root}/output",
        **({"OSTLER_SECRETS_DIR": told.files} if told is not None and told.files is not None else {}),
        **{f"OSTLER_ARRAY_{name}": str(number) for name, number in array.items() if number is not None},
        **gpu_environment(task.gpus),
        **proxy_environment(manifest),
    }


def secret_variables(manifest: Manifest) -> tuple[str, ...]:
    """The variables in which a manifest wants secrets."""
    return tuple([use.env for use in manifest.secrets if use.env is not None]) if manifest.secrets else ()


def dangerous(names: Iterable[str]) -> list[str]:
    """Those variables that a manifest may not set for a trusted task, since they could make it run other code."""
    return sorted(name for name in names if _CODE.fullmatch(name))
