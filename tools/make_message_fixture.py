"""Writes tests/compat/fixtures/messages-VERSION.json: an example of each message of node and coordinator, as this release sends it."""

import json
import sys
from pathlib import Path

from ostler import __version__
from ostler.model.attempt import AttemptState, Usage
from ostler.model.capabilities import Capabilities, Cpu
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import InputFile
from ostler.protocol import codec
from ostler.protocol import messages as m
from ostler.protocol.dsse import ASSIGNMENT_TYPE, Envelope, Signature

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "compat" / "fixtures"
HELD = m.Held("j-1", 2)
CAPABILITIES = Capabilities(
    node_id="node-1", version="0.1.0", cpu=Cpu(cores=2, arch="x86_64"), memory_mb=24000, disk_free_mb=78000,
    gpu=(), runners=("cli", "python"), tags=("debian", "cpu"),
)  # fmt: skip
EXAMPLES = (
    m.RegisterRequest(
        node_id="node-1", version="0.1.0", protocol=1, boot_epoch="b:1", public_key=b"k" * 32, capabilities=CAPABILITIES,
        cpu_slots=2, gpu_slots=0, held=(HELD,), challenge="c", signature=b"s" * 64,
    ),
    m.RegisterResponse(
        node_id="node-1", node_token="t", token_ttl_s=3600.0, heartbeat_s=15.0, lease_s=45.0, pull_wait_s=30.0,
        coordinator_key=b"k" * 32, version="0.1.0", protocol=1, protocol_min=1, forget=(HELD,),
    ),
    m.HeartbeatRequest(node_id="node-1", load=0.5, free_mb=100, gpu_free=0, held=(HELD,), version="0.1.0", boot_epoch="b:1"),
    m.HeartbeatResponse(
        lease_s=45.0, directives=(m.Directive(kind=m.DirectiveKind.CANCEL, job_id="j-1", attempt=2, reason="asked"),)
    ),
    m.PullRequest(node_id="node-1", slots=3, wait_s=30.0, held=(HELD,), protocol=1, boot_epoch="b:1"),
    m.PullResponse(jobs=(Envelope(b"{}", ASSIGNMENT_TYPE, (Signature("key", b"s"),)),)),
    m.Assignment(
        job_id="j-1", attempt=2, node_id="node-1", lease_s=45.0, spec='{"command": "true"}', tries=1,
        inputs=(InputFile(name="in.txt", sha256="0" * 64, size=3),),
    ),
    m.AckBatch(items=(m.AckItem(job_id="j-1", attempt=2), m.AckItem(job_id="j-2", attempt=1, decline="draining"))),
    m.ProgressBatch(items=(m.ProgressItem(job_id="j-1", attempt=2, state=AttemptState.RUNNING, pct=50.0, note="half"),)),
    m.OutcomeBatch(
        items=(
            m.Outcome(
                job_id="j-1", attempt=2, exit_code=0, usage=Usage(wall_s=1.5, peak_memory_mb=8.0), sandbox="bwrap",
                logs=(m.LogEnd(stream="stdout", length=2, sha256="0" * 64, tail=b"ok"),),
                artifacts=(m.ArtifactEntry(path="out", type="text/plain", size=1, sha256="0" * 64),),
            ),
            m.Outcome(job_id="j-2", attempt=1, failure=Failure(FailureCode.EXIT, "exit code 3"), exit_code=3),
        )
    ),
    m.BatchResponse(items=(m.ItemResult(job_id="j-1", attempt=2), m.ItemResult(job_id="j-2", attempt=1, ok=False, code="stale_attempt"))),
    m.SecretValues(items=(m.SecretValue(name="db", value=b"\0binary"),)),
    m.SubmitResponse(items=(m.Submitted(job_id="j-1"),)),
)  # fmt: skip


def main() -> int:
    """Write the file of this release; one that is there is a promise and is not written again."""
    path = FIXTURES / f"messages-{__version__}.json"
    if path.exists() and "--force" not in sys.argv:
        print(f"{path.name} is there already: messages of a release do not change")
        return 1
    recorded = {type(one).__name__: json.loads(codec.encode(one)) for one in EXAMPLES}
    path.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
