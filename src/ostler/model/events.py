"""What the fleet tells: every kind of event, and what it says."""

from ostler.model.job import JobEvent
from ostler.model.node import NodeEvent

JOB_KINDS: dict[str, str] = {
    "submit": "It was accepted and waits in its queue.",
    "hold": "Somebody holds it: no node gets it.",
    "release": "It may be leased again.",
    "ready": "What it waited for is so; it may be leased.",
    JobEvent.LEASE: "A node's pull won it; a new attempt exists.",
    JobEvent.RETURN: "The node gave the attempt back unbegun, or never got it; it is queued again.",
    JobEvent.ACK: "The node wrote the attempt down and takes it.",
    JobEvent.PREPARE: "The attempt's workspace and inputs are being made.",
    JobEvent.START: "The attempt's program runs.",
    JobEvent.UPLOAD: "The program ended; results are on their way.",
    JobEvent.FINISH: "It is done.",
    JobEvent.FAIL: "It failed for good.",
    JobEvent.RETRY: "The attempt failed or was lost; it will be tried again.",
    JobEvent.DUE: "Its wait for a retry is over; it is queued again.",
    "request_cancel": "Somebody wants it cancelled; the node that holds it is told.",
    JobEvent.CANCEL: "It is cancelled.",
    JobEvent.EXPIRE: "Its time-to-live passed before any node took it.",
    "request_debug": "Somebody wants the latest attempt's workspace.",
    "quota_warning": "With it most of a quota of its owner is taken, or all of it.",
    "workspace": "The workspace was uploaded.",
}

NODE_KINDS: dict[str, str] = {
    "enrol": "It joined with a join token.",
    "new_key": "It has a new key, which opened a session; the one before opens none any more.",
    NodeEvent.REGISTER: "Its daemon opened a new session.",
    NodeEvent.BEAT: "It gave a sign of life and is ready.",
    NodeEvent.MISS: "It is silent: unknown, its attempts are not judged yet.",
    NodeEvent.LOSE: "It was silent for a whole lease; its attempts are given to others.",
    "cordon": "Somebody wants it to get no new work; what runs goes on.",
    "uncordon": "It may get new work again.",
    "pool": "It was moved to another pool.",
    "service": "A service of it is in another state, or health.",
    "outside": "It speaks no protocol that the coordinator does: it gets no new work, what runs goes on.",
    NodeEvent.DRAIN: "It gets no new work.",
    NodeEvent.EMPTY: "It drained: nothing runs on it any more.",
    NodeEvent.RESUME: "It gets work again.",
    "rollout": "A rollout came further there: the message says which, and how far.",
    NodeEvent.RETIRE: "It is no longer part of the fleet.",
}

KINDS = frozenset(map(str, [*JOB_KINDS, *NODE_KINDS]))
