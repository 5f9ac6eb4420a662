"""The route table: the one source of the router, the authorisation, the typed client and the OpenAPI document."""

from dataclasses import dataclass, field
from typing import Any

from ostler.model import errors
from ostler.model.access import READ, RULE, RUN, WORK, Grants
from ostler.model.enumeration import Word
from ostler.model.errors import OstlerError
from ostler.model.manifest import Manifest
from ostler.protocol import messages as m

BASE = "/api/v1"
MB = 2**20
MAX_SECRET_BYTES = 64 * 1024


class Audience(Word):
    """Who may call a route."""

    PUBLIC = "public"  # no credential
    ENROL = "enrol"  # a join token, or a node's signature: the operation itself decides
    NODE = "node"  # a node token
    CLIENT = "client"  # an API token
    MEMBER = "member"  # a node token or an API token


class Body(Word):
    """What a request carries."""

    NONE = "none"
    JSON = "json"
    BYTES = "bytes"  # streamed, never held in memory as a whole
    FLEXIBLE = "flexible"  # JSON, or one of the source's forms (query parameters, multipart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route. `request` and `response` are message classes (None: no JSON there); `media` is the answer's type where it is not JSON."""

    name: str
    method: str
    path: str
    audience: Audience
    summary: str
    body: Body = Body.NONE
    request: Any = None
    query: Any = None
    response: Any = None
    media: str = "application/json"
    status: int = 200
    also: tuple[int, ...] = ()  # further good answers, such as 202 while a result is not ready
    errors: tuple[type[OstlerError], ...] = ()
    max_body: int = MB
    keyed: bool = False  # honours an `Idempotency-Key`, so that the same call may be made again
    grants: Grants = field(
        default_factory=dict
    )  # for clients: which roles may call it (nobody where none is named), and how far each reaches

    @property
    def url(self) -> str:
        """The whole path template, such as /api/v1/jobs/{job_id}."""
        return self.path if self.path.startswith(("/healthz", "/readyz", "/metrics")) else BASE + self.path


_JOB = (errors.NotFound,)

REGISTER = Route(
    name="register_node", method="POST", path="/nodes/register", audience=Audience.ENROL, body=Body.JSON,
    summary="Enrol a node with a join token, or open a session by signing a challenge",
    request=m.RegisterRequest, response=m.RegisterResponse,
    errors=(errors.InvalidSpec, errors.Unauthenticated, errors.UpgradeRequired, errors.Forbidden, errors.AlreadyExists),
)  # fmt: skip
PROVE_NODE = Route(
    name="prove_node", method="POST", path="/nodes/prove", audience=Audience.ENROL, body=Body.JSON,
    summary="Ask by a signed challenge whether a node's key is known here; opens no session",
    request=m.ProveRequest, response=m.KeyStanding,
    errors=(errors.InvalidSpec, errors.Unauthenticated, errors.UpgradeRequired, errors.Forbidden),
)  # fmt: skip
REPLACE_KEY = Route(
    name="replace_key", method="POST", path="/nodes/key", audience=Audience.ENROL, body=Body.JSON,
    summary="A new key for a node, signed by the one that it has; that stays good until the new one opened a session",
    request=m.KeyRequest, response=m.KeyStanding, errors=(errors.InvalidSpec, errors.Unauthenticated, errors.Forbidden),
)  # fmt: skip
HEARTBEAT = Route(
    name="heartbeat", method="POST", path="/nodes/heartbeat", audience=Audience.NODE, body=Body.JSON,
    summary="Renew the leases that a node holds; answers directives",
    request=m.HeartbeatRequest, response=m.HeartbeatResponse, errors=(errors.InvalidSpec, errors.NotFound, errors.Conflict),
)  # fmt: skip
PULL = Route(
    name="pull_jobs", method="POST", path="/jobs/pull", audience=Audience.NODE, body=Body.JSON,
    summary="Long poll for leases and directives",
    request=m.PullRequest, response=m.PullResponse, errors=(errors.InvalidSpec, errors.NotFound, errors.Conflict),
)  # fmt: skip
ACK = Route(
    name="ack_jobs", method="POST", path="/jobs/ack", audience=Audience.NODE, body=Body.FLEXIBLE,
    summary="Accept leases, or hand them back unbegun",
    request=m.AckBatch, response=m.BatchResponse, errors=(errors.InvalidSpec, errors.NotFound, errors.StaleAttempt),
)  # fmt: skip
PROGRESS = Route(
    name="report_progress", method="POST", path="/jobs/progress", audience=Audience.NODE, body=Body.FLEXIBLE,
    summary="Report stages and progress of running attempts",
    request=m.ProgressBatch, response=m.BatchResponse, errors=(errors.InvalidSpec, errors.NotFound, errors.StaleAttempt),
)  # fmt: skip
RESULT = Route(
    name="deliver_results", method="POST", path="/jobs/result", audience=Audience.NODE, body=Body.FLEXIBLE,
    summary="Deliver outcomes: a JSON batch, or multipart with one outcome (`metadata`) and its artifacts",
    request=m.OutcomeBatch, response=m.BatchResponse, max_body=64 * 1024 * MB,
    errors=(errors.InvalidSpec, errors.NotFound, errors.StaleAttempt, errors.TooLarge, errors.StoreBusy),
)  # fmt: skip
FAIL = Route(
    name="report_failures", method="POST", path="/jobs/fail", audience=Audience.NODE, body=Body.FLEXIBLE,
    summary="Report failed attempts",
    request=m.OutcomeBatch, response=m.BatchResponse, max_body=16 * MB,
    errors=(errors.InvalidSpec, errors.NotFound, errors.StaleAttempt),
)  # fmt: skip
APPEND_LOG = Route(
    name="append_log", method="PATCH", path="/jobs/{job_id}/attempts/{attempt}/log/{stream}", audience=Audience.NODE,
    body=Body.BYTES, status=204, max_body=8 * MB,
    summary="Append log bytes at `Upload-Offset`; the last call adds `Upload-Length` and `Upload-Checksum`",
    errors=(errors.InvalidSpec, errors.NotFound, errors.Gone, errors.OffsetMismatch, errors.TooLarge),
)  # fmt: skip
UPLOAD_WORKSPACE = Route(
    name="upload_workspace", method="PUT", path="/jobs/{job_id}/attempts/{attempt}/workspace", audience=Audience.NODE,
    body=Body.BYTES, response=m.Blob, max_body=64 * 1024 * MB,
    summary="Upload a pinned workspace as tar.gz, asked for by a debug directive",
    errors=(errors.NotFound, errors.TooLarge),
)  # fmt: skip

FETCH_SECRETS = Route(
    name="fetch_secrets", method="POST", path="/jobs/{job_id}/attempts/{attempt}/secrets", audience=Audience.NODE,
    response=m.SecretValues,
    summary="The values of the secrets that an attempt's manifest names; only for one that the node has acknowledged and holds",
    errors=(errors.NotFound, errors.Forbidden, errors.StaleAttempt, errors.Unsealable),
)  # fmt: skip

SUBMIT = Route(
    name="submit_jobs", method="POST", path="/jobs", audience=Audience.CLIENT, grants=WORK, body=Body.JSON, status=201, keyed=True,
    summary="Submit one manifest, a list, or {jobs: [...], group: NAME}; all are accepted or none (at most 10,000 jobs)",
    request=Manifest, response=m.SubmitResponse, max_body=64 * MB,
    errors=(errors.InvalidSpec, errors.AlreadyExists, errors.Conflict, errors.QuotaExceeded, errors.TooLarge),
)  # fmt: skip
LIST_JOBS = Route(
    name="list_jobs", method="GET", path="/jobs", audience=Audience.CLIENT, grants=READ, query=m.JobQuery, response=m.JobPage,
    summary="List jobs, newest first", errors=(errors.InvalidSpec,),
)  # fmt: skip
SHOW_JOB = Route(
    name="show_job", method="GET", path="/jobs/{job_id}", audience=Audience.CLIENT, grants=READ, response=m.JobView,
    summary="One job with its attempts, timeline and artifacts", errors=_JOB,
)  # fmt: skip
AWAIT_JOB = Route(
    name="await_job", method="GET", path="/jobs/{job_id}/result", audience=Audience.CLIENT, grants=READ, query=m.WaitQuery,
    response=m.JobView, also=(202,),
    summary="The finished job; 202 with Retry-After and the job as it is while it is not over", errors=_JOB,
)  # fmt: skip
AWAIT_JOBS = Route(
    name="await_jobs", method="POST", path="/jobs/await", audience=Audience.CLIENT, grants=READ, body=Body.JSON,
    request=m.AwaitRequest, response=m.AwaitResponse, max_body=2 * MB,
    summary="Those of some jobs that are over, as soon as there is one; small artifacts come along when asked for",
    errors=(errors.InvalidSpec, errors.TooLarge),
)  # fmt: skip
EXPLAIN_JOB = Route(
    name="explain_job", method="GET", path="/jobs/{job_id}/explain", audience=Audience.CLIENT, grants=READ, response=m.Explanation,
    summary="Why a job is still pending", errors=_JOB,
)  # fmt: skip
READ_LOG = Route(
    name="read_log", method="GET", path="/jobs/{job_id}/logs", audience=Audience.CLIENT, grants=READ, query=m.LogQuery,
    media="text/plain", also=(206,),
    summary="Log bytes from `offset`; with `follow=true` server-sent events until the job is over",
    errors=(errors.NotFound, errors.InvalidSpec),
)  # fmt: skip
LIST_ARTIFACTS = Route(
    name="list_artifacts", method="GET", path="/jobs/{job_id}/artifacts", audience=Audience.CLIENT, grants=READ, query=m.ArtifactQuery,
    response=m.ArtifactPage, summary="Artifacts of the latest finished attempt, or of the one named", errors=_JOB,
)  # fmt: skip
GET_ARTIFACT = Route(
    name="get_artifact", method="GET", path="/jobs/{job_id}/artifacts/{path:path}", audience=Audience.CLIENT, grants=READ,
    query=m.ArtifactQuery, media="application/octet-stream", also=(206,),
    summary="One artifact's bytes; honours Range", errors=_JOB,
)  # fmt: skip
CANCEL_JOB = Route(
    name="cancel_job", method="POST", path="/jobs/{job_id}/cancel", audience=Audience.CLIENT, grants=WORK, body=Body.JSON,
    request=m.CancelRequest, response=m.JobView,
    summary="Cancel a job: at once where nobody holds it, else as soon as its node has ended it",
    errors=(errors.NotFound, errors.InvalidTransition),
)  # fmt: skip
RETRY_JOB = Route(
    name="retry_job", method="POST", path="/jobs/{job_id}/retry", audience=Audience.CLIENT, grants=WORK, response=m.JobView, status=201,
    summary="Try again: now if the job waits for a retry; a job that is over is submitted anew under a new id",
    errors=(errors.NotFound, errors.InvalidTransition, errors.QuotaExceeded),
)  # fmt: skip
HOLD_JOB = Route(
    name="hold_job", method="POST", path="/jobs/{job_id}/hold", audience=Audience.CLIENT, grants=WORK, response=m.JobView,
    summary="Keep a pending job from being leased", errors=(errors.NotFound, errors.InvalidTransition),
)  # fmt: skip
RELEASE_JOB = Route(
    name="release_job", method="POST", path="/jobs/{job_id}/release", audience=Audience.CLIENT, grants=WORK, response=m.JobView,
    summary="Let a held job be leased again", errors=(errors.NotFound, errors.InvalidTransition),
)  # fmt: skip
DEBUG_JOB = Route(
    name="debug_job", method="POST", path="/jobs/{job_id}/debug", audience=Audience.CLIENT, grants=WORK, response=m.JobView, status=202,
    summary="Ask the node to pin the latest attempt's workspace and upload it",
    errors=(errors.NotFound, errors.Conflict),
)  # fmt: skip
GET_WORKSPACE = Route(
    name="get_workspace", method="GET", path="/jobs/{job_id}/attempts/{attempt}/workspace", audience=Audience.CLIENT, grants=READ,
    media="application/gzip", also=(206,), summary="A workspace that was asked for by debug, as tar.gz", errors=_JOB,
)  # fmt: skip
UPLOAD_BLOB = Route(
    name="upload_blob", method="POST", path="/blobs", audience=Audience.CLIENT, grants=WORK, body=Body.BYTES, status=201, response=m.Blob,
    summary="Upload one input file; manifests name it by its sha256", max_body=64 * 1024 * MB,
    errors=(errors.TooLarge, errors.StoreBusy),
)  # fmt: skip
GET_BLOB = Route(
    name="get_blob", method="GET", path="/blobs/{sha256}", audience=Audience.MEMBER, grants=READ, media="application/octet-stream",
    also=(206,), summary="An uploaded file's bytes; a node reaches only inputs of attempts that it holds", errors=_JOB,
)  # fmt: skip
SHOW_GROUP = Route(
    name="show_group", method="GET", path="/groups/{group_id}", audience=Audience.CLIENT, grants=READ,
    query=m.WaitQuery, response=m.GroupView,
    summary="One array or group with the states of its jobs; with `wait_s` held back until all are over or the time is",
    errors=(errors.NotFound, errors.InvalidSpec),
)  # fmt: skip
CANCEL_GROUP = Route(
    name="cancel_group", method="POST", path="/groups/{group_id}/cancel", audience=Audience.CLIENT, grants=WORK, body=Body.JSON,
    request=m.CancelRequest, response=m.GroupView,
    summary="Cancel all jobs of an array or group that are not over, each as `cancel_job` does",
    errors=(errors.NotFound, errors.InvalidTransition),
)  # fmt: skip
EVENTS = Route(
    name="list_events", method="GET", path="/events", audience=Audience.CLIENT, grants=READ, query=m.EventQuery,
    response=m.EventPage,
    summary="What happened to jobs and nodes, first to last; with `follow=true` (or `Accept: text/event-stream`) server-sent events "
    "whose ids are cursors: `Last-Event-ID` goes on after one",
    errors=(errors.InvalidSpec, errors.NotFound, errors.Gone),
)  # fmt: skip
OVERVIEW = Route(
    name="overview", method="GET", path="/overview", audience=Audience.CLIENT, grants=READ, response=m.Overview,
    summary="The fleet at a glance: nodes, what is queued and running by submitter and queue, the newest failures",
)  # fmt: skip
LIST_NODES = Route(
    name="list_nodes", method="GET", path="/nodes", audience=Audience.CLIENT, grants=READ, query=m.PageQuery, response=m.NodePage,
    summary="List nodes", errors=(errors.InvalidSpec,),
)  # fmt: skip
SHOW_NODE = Route(
    name="show_node", method="GET", path="/nodes/{node_id}", audience=Audience.CLIENT, grants=READ, response=m.NodeView,
    summary="One node with its capabilities and attempts", errors=_JOB,
)  # fmt: skip
LIST_SERVICES = Route(
    name="list_services", method="GET", path="/services", audience=Audience.CLIENT, grants=READ, query=m.ServiceQuery,
    response=m.ServicePage, summary="Services of all nodes, a row for each node and service", errors=(errors.InvalidSpec, errors.NotFound),
)  # fmt: skip
SHOW_SERVICE = Route(
    name="show_service", method="GET", path="/services/{name}", audience=Audience.CLIENT, grants=READ, query=m.ServiceQuery,
    response=m.ServicePage, summary="One service on the nodes that declare it", errors=(errors.InvalidSpec, errors.NotFound),
)  # fmt: skip
COMMAND_SERVICE = Route(
    name="command_service", method="POST", path="/services/{name}/{verb}", audience=Audience.CLIENT, grants=RUN, body=Body.JSON,
    request=m.ServiceRequest, response=m.ServiceResponse, status=201, keyed=True,
    summary="Command a service to start, stop or restart, or ask for its status: a job for each node that it is for",
    errors=(errors.InvalidSpec, errors.NotFound, errors.Conflict, errors.NodeRetired, errors.NoCapacity),
)  # fmt: skip
DRAIN_NODE = Route(
    name="drain_node", method="POST", path="/nodes/{node_id}/drain", audience=Audience.MEMBER, grants=RUN, body=Body.JSON,
    request=m.DrainRequest, response=m.NodeView, summary="Give a node no new work (a node may drain itself)",
    errors=(errors.NotFound, errors.InvalidTransition),
)  # fmt: skip
RESUME_NODE = Route(
    name="resume_node", method="POST", path="/nodes/{node_id}/resume", audience=Audience.MEMBER, grants=RUN, response=m.NodeView,
    summary="Give a drained node work again", errors=(errors.NotFound, errors.InvalidTransition),
)  # fmt: skip
CORDON_NODE = Route(
    name="cordon_node", method="POST", path="/nodes/{node_id}/cordon", audience=Audience.CLIENT, grants=RUN, body=Body.JSON,
    request=m.ReasonRequest, response=m.NodeView, summary="Give a node no new work; it goes on and is not told",
    errors=(errors.NotFound, errors.NodeRetired),
)  # fmt: skip
UNCORDON_NODE = Route(
    name="uncordon_node", method="POST", path="/nodes/{node_id}/uncordon", audience=Audience.CLIENT, grants=RUN,
    response=m.NodeView, summary="End a cordon", errors=(errors.NotFound, errors.NodeRetired),
)  # fmt: skip
MOVE_NODE = Route(
    name="move_node", method="POST", path="/nodes/{node_id}/pool", audience=Audience.CLIENT, grants=RUN, body=Body.JSON,
    request=m.PoolRequest, response=m.NodeView, summary="Move a node to another pool; what it runs stays",
    errors=(errors.NotFound, errors.NodeRetired, errors.InvalidSpec),
)  # fmt: skip
RETIRE_NODE = Route(
    name="retire_node", method="POST", path="/nodes/{node_id}/retire", audience=Audience.CLIENT, grants=RUN, body=Body.JSON,
    request=m.ReasonRequest, response=m.NodeView,
    summary="End a node for good: its key and tokens open nothing, what it ran is tried elsewhere",
    errors=(errors.NotFound, errors.InvalidTransition),
)  # fmt: skip
CREATE_TOKEN = Route(
    name="create_token", method="POST", path="/tokens", audience=Audience.CLIENT, grants=RUN, body=Body.JSON, status=201,
    request=m.TokenRequest, response=m.TokenView, summary="Make a join token, or (as an admin) an API token with a role; it is shown once",
    errors=(errors.InvalidSpec, errors.Forbidden),
)  # fmt: skip
LIST_TOKENS = Route(
    name="list_tokens", method="GET", path="/tokens", audience=Audience.CLIENT, grants=RUN, query=m.PageQuery, response=m.TokenPage,
    summary="List tokens, without their secrets", errors=(errors.InvalidSpec,),
)  # fmt: skip
REVOKE_TOKEN = Route(
    name="revoke_token", method="DELETE", path="/tokens/{token_id}", audience=Audience.CLIENT, grants=RUN, response=m.TokenView,
    summary="Make a token useless from now on; an API token only as an admin",
    errors=(errors.NotFound, errors.Conflict),
)  # fmt: skip
LIST_QUOTAS = Route(
    name="list_quotas", method="GET", path="/quotas", audience=Audience.CLIENT, grants=READ, query=m.QuotaQuery,
    response=m.QuotaPage, summary="What principals may have and use, and what they have and used this month",
    errors=(errors.InvalidSpec,),
)  # fmt: skip
SHOW_QUOTA = Route(
    name="show_quota", method="GET", path="/quotas/{principal}", audience=Audience.CLIENT, grants=READ, response=m.QuotaView,
    summary="How one principal stands", errors=_JOB,
)  # fmt: skip
SET_QUOTA = Route(
    name="set_quota", method="PUT", path="/quotas/{principal}", audience=Audience.CLIENT, grants=RULE, body=Body.JSON,
    request=m.QuotaRequest, response=m.QuotaView, summary="Limit a principal; all limits at once, from now on",
    errors=(errors.InvalidSpec, errors.NotFound),
)  # fmt: skip
REMOVE_QUOTA = Route(
    name="remove_quota", method="DELETE", path="/quotas/{principal}", audience=Audience.CLIENT, grants=RULE, response=m.QuotaView,
    summary="Limit a principal no longer; the ledger stays", errors=_JOB,
)  # fmt: skip
SHOW_RETENTION = Route(
    name="show_retention", method="GET", path="/retention", audience=Audience.CLIENT, grants=RUN, query=m.RetentionQuery,
    response=m.RetentionView, summary="How long things are kept, what takes space, and with `dry_run` what would go now",
    errors=(errors.InvalidSpec,),
)  # fmt: skip
APPLY_RETENTION = Route(
    name="apply_retention", method="POST", path="/retention", audience=Audience.CLIENT, grants=RUN, response=m.RetentionView,
    summary="Remove now what is older, or more, than the coordinator keeps",
)  # fmt: skip
ADD_WEBHOOK = Route(
    name="add_webhook", method="POST", path="/webhooks", audience=Audience.CLIENT, grants=WORK, body=Body.JSON, status=201,
    request=m.WebhookRequest, response=m.WebhookView,
    summary="Have events delivered to a URL from now on, signed with a secret that is shown once; a submitter's: of own jobs",
    errors=(errors.InvalidSpec, errors.Conflict),
)  # fmt: skip
LIST_WEBHOOKS = Route(
    name="list_webhooks", method="GET", path="/webhooks", audience=Audience.CLIENT, grants=WORK, query=m.PageQuery,
    response=m.WebhookPage, summary="List webhooks, how they do, and without their secrets", errors=(errors.InvalidSpec,),
)  # fmt: skip
REMOVE_WEBHOOK = Route(
    name="remove_webhook", method="DELETE", path="/webhooks/{webhook_id}", audience=Audience.CLIENT, grants=WORK,
    response=m.WebhookView, summary="Deliver nothing more to it", errors=(errors.NotFound,),
)  # fmt: skip
ENABLE_WEBHOOK = Route(
    name="enable_webhook", method="POST", path="/webhooks/{webhook_id}/enable", audience=Audience.CLIENT, grants=WORK,
    response=m.WebhookView, summary="Deliver again, now, where it stopped after failures", errors=(errors.NotFound,),
)  # fmt: skip
TEST_WEBHOOK = Route(
    name="test_webhook", method="POST", path="/webhooks/{webhook_id}/test", audience=Audience.CLIENT, grants=WORK,
    response=m.WebhookTest, summary="Make a delivery without events now, and tell what came of it",
    errors=(errors.NotFound, errors.Unsealable),
)  # fmt: skip
LIST_AUDIT = Route(
    name="list_audit", method="GET", path="/audit", audience=Audience.CLIENT, grants=RULE, query=m.AuditQuery, response=m.AuditPage,
    summary="The audit log, newest first: who did what to what, from where; refused calls too", errors=(errors.InvalidSpec,),
)  # fmt: skip
VERIFY_AUDIT = Route(
    name="verify_audit", method="GET", path="/audit/verify", audience=Audience.CLIENT, grants=RULE, query=m.AuditCheckQuery,
    response=m.AuditCheck, summary="Verify the audit log's seals, a piece in each call",
    errors=(errors.InvalidSpec, errors.NotFound),
)  # fmt: skip
PUSH_RELEASE = Route(
    name="push_release", method="PUT", path="/releases/{release}", audience=Audience.CLIENT, grants=RUN, body=Body.BYTES, status=201,
    query=m.ReleaseQuery, response=m.ReleaseView, max_body=2048 * MB,
    summary="Upload the bundle of a release, which is checked as a host checks it; one that is there stays as it is",
    errors=(errors.InvalidSpec, errors.Forbidden, errors.Conflict, errors.TooLarge, errors.StoreBusy),
)  # fmt: skip
LIST_RELEASES = Route(
    name="list_releases", method="GET", path="/releases", audience=Audience.CLIENT, grants=RUN, response=m.ReleasePage,
    summary="The releases that nodes can be asked to run, the newest first, and the release keys that are trusted",
)  # fmt: skip
SHOW_RELEASE = Route(
    name="show_release", method="GET", path="/releases/{release}", audience=Audience.CLIENT, grants=RUN, response=m.ReleaseView,
    summary="One release", errors=_JOB,
)  # fmt: skip
GET_BUNDLE = Route(
    name="get_bundle", method="GET", path="/releases/{release}/bundle", audience=Audience.MEMBER, grants=RUN, query=m.BundleQuery,
    media="application/octet-stream", also=(206,),
    summary="A release's bundle, or what a platform needs of it; honours Range. A node reaches only the one that it is asked to run",
    errors=(errors.NotFound, errors.InvalidSpec),
)  # fmt: skip
REMOVE_RELEASE = Route(
    name="remove_release", method="DELETE", path="/releases/{release}", audience=Audience.CLIENT, grants=RUN, response=m.ReleaseView,
    summary="Keep a release no longer; hosts that have it go on",
    errors=(errors.InvalidSpec, errors.NotFound, errors.Conflict, errors.Outdated),
)  # fmt: skip
PLAN_ROLLOUT = Route(
    name="plan_rollout", method="POST", path="/rollouts", audience=Audience.CLIENT, grants=RUN, body=Body.JSON, status=201,
    request=m.RolloutRequest, response=m.RolloutView,
    summary="Plan a release for nodes, which changes nothing yet: `resume_rollout` begins what was planned",
    errors=(errors.InvalidSpec, errors.NotFound, errors.Conflict),
)  # fmt: skip
LIST_ROLLOUTS = Route(
    name="list_rollouts", method="GET", path="/rollouts", audience=Audience.CLIENT, grants=RUN, query=m.PageQuery,
    response=m.RolloutPage, summary="List rollouts, newest first, without their nodes", errors=(errors.InvalidSpec,),
)  # fmt: skip
SHOW_ROLLOUT = Route(
    name="show_rollout", method="GET", path="/rollouts/{rollout_id}", audience=Audience.CLIENT, grants=RUN, response=m.RolloutView,
    summary="One rollout with each node's progress; its ETag is for the calls that change it", errors=_JOB,
)  # fmt: skip
RESUME_ROLLOUT = Route(
    name="resume_rollout", method="POST", path="/rollouts/{rollout_id}/resume", audience=Audience.CLIENT, grants=RUN,
    response=m.RolloutView, summary="Begin what was planned, or go on with what is held; with `If-Match` only while it is as it was seen",
    errors=(errors.InvalidSpec, errors.NotFound, errors.InvalidTransition, errors.OperationInFlight, errors.Outdated),
)  # fmt: skip
PAUSE_ROLLOUT = Route(
    name="pause_rollout", method="POST", path="/rollouts/{rollout_id}/pause", audience=Audience.CLIENT, grants=RUN, body=Body.JSON,
    request=m.ReasonRequest, response=m.RolloutView, summary="Begin no further node; those under way are brought to an end",
    errors=(errors.InvalidSpec, errors.NotFound, errors.InvalidTransition, errors.Outdated),
)  # fmt: skip
ABORT_ROLLOUT = Route(
    name="abort_rollout", method="POST", path="/rollouts/{rollout_id}/abort", audience=Audience.CLIENT, grants=RUN, body=Body.JSON,
    request=m.ReasonRequest, response=m.RolloutView,
    summary="End a rollout: no further node is begun, those under way are brought to an end",
    errors=(errors.InvalidSpec, errors.NotFound, errors.InvalidTransition, errors.Outdated),
)  # fmt: skip
SET_SECRET = Route(
    name="set_secret", method="PUT", path="/secrets/{name}", audience=Audience.CLIENT, grants=WORK, body=Body.BYTES,
    query=m.SecretQuery, response=m.SecretView, max_body=MAX_SECRET_BYTES,
    summary="Set a secret of the caller's own, or (operators and admins) a shared one: the body is its value, which no call shows",
    errors=(errors.InvalidSpec, errors.Forbidden, errors.TooLarge),
)  # fmt: skip
LIST_SECRETS = Route(
    name="list_secrets", method="GET", path="/secrets", audience=Audience.CLIENT, grants=WORK, response=m.SecretPage,
    summary="The caller's own secrets and the shared ones that the caller may name, without their values",
)  # fmt: skip
DELETE_SECRET = Route(
    name="delete_secret", method="DELETE", path="/secrets/{name}", audience=Audience.CLIENT, grants=WORK, query=m.SecretQuery,
    response=m.SecretView, summary="Delete a secret; a job that names it and has not begun fails",
    errors=(errors.InvalidSpec, errors.NotFound, errors.Forbidden),
)  # fmt: skip
VERSION = Route(
    name="version", method="GET", path="/version", audience=Audience.PUBLIC, response=m.VersionView,
    summary="Release, protocol and schema of this coordinator",
)  # fmt: skip
OPENAPI = Route(
    name="openapi", method="GET", path="/openapi.json", audience=Audience.PUBLIC, summary="This document",
)  # fmt: skip
HEALTHZ = Route(
    name="healthz", method="GET", path="/healthz", audience=Audience.PUBLIC, grants=READ, response=m.HealthView,
    summary="Whether the process and its loops are alive", errors=(errors.StoreBusy,),
)  # fmt: skip
READYZ = Route(
    name="readyz", method="GET", path="/readyz", audience=Audience.PUBLIC, grants=READ, response=m.HealthView,
    summary="Whether it can serve: the store answers and the schema fits", errors=(errors.StoreBusy,),
)  # fmt: skip
METRICS = Route(
    name="metrics", method="GET", path="/metrics", audience=Audience.PUBLIC, grants=READ, media="text/plain",
    summary="Metrics in the Prometheus text format",
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    REGISTER, PROVE_NODE, REPLACE_KEY, HEARTBEAT, PULL, ACK, PROGRESS, RESULT, FAIL, APPEND_LOG, UPLOAD_WORKSPACE, FETCH_SECRETS,
    SUBMIT, LIST_JOBS, SHOW_JOB, AWAIT_JOB, AWAIT_JOBS, EXPLAIN_JOB, READ_LOG, LIST_ARTIFACTS, GET_ARTIFACT,
    CANCEL_JOB, RETRY_JOB, HOLD_JOB, RELEASE_JOB, DEBUG_JOB, GET_WORKSPACE, SHOW_GROUP, CANCEL_GROUP, UPLOAD_BLOB, GET_BLOB,
    LIST_SERVICES, SHOW_SERVICE, COMMAND_SERVICE,
    OVERVIEW, LIST_NODES, SHOW_NODE, DRAIN_NODE, RESUME_NODE, CORDON_NODE, UNCORDON_NODE, MOVE_NODE, RETIRE_NODE,
    CREATE_TOKEN, LIST_TOKENS, REVOKE_TOKEN,
    EVENTS, ADD_WEBHOOK, LIST_WEBHOOKS, REMOVE_WEBHOOK, ENABLE_WEBHOOK, TEST_WEBHOOK, LIST_AUDIT, VERIFY_AUDIT,
    LIST_QUOTAS, SHOW_QUOTA, SET_QUOTA, REMOVE_QUOTA, SHOW_RETENTION, APPLY_RETENTION,
    SET_SECRET, LIST_SECRETS, DELETE_SECRET,
    PUSH_RELEASE, LIST_RELEASES, SHOW_RELEASE, GET_BUNDLE, REMOVE_RELEASE,
    PLAN_ROLLOUT, LIST_ROLLOUTS, SHOW_ROLLOUT, RESUME_ROLLOUT, PAUSE_ROLLOUT, ABORT_ROLLOUT,
    VERSION, OPENAPI, HEALTHZ, READYZ, METRICS,
)  # fmt: skip
