"""Whatever bytes come in, no answer is a 500 and the coordinator goes on: every route, every credential, broken input."""

import asyncio
import re
from dataclasses import fields, is_dataclass
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import StructMeta

from integration.api_rig import ADMIN, Rig, coordinator
from ostler.model import manifest
from ostler.protocol import codec
from ostler.protocol import messages as m
from ostler.protocol.routes import ROUTES, Body

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**31, 2**63, -(2**63), 10**30, 1e300, -1e-300, 0, -1]),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.sampled_from(["\0", "a\0b", "..", "'; --", "%s", "ä" * 300]),
)  # fmt: skip
KNOWN = {name for one in vars(m).values() if isinstance(one, StructMeta) for name in one.__struct_fields__}
KNOWN |= {field.name for one in vars(manifest).values() if is_dataclass(one) for field in fields(one)}
NAMES = st.sampled_from(sorted(KNOWN))
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=6)), max_leaves=25
)
WHOLE = st.sampled_from(["j-fuzz", "n-fuzz", 1, 0, 2**62, "stdout", "ffmpeg", "true", "0" * 64])


def plausible(shape):
    """A message of the right shape filled with anything: deeper than noise, which dies at the door."""
    return st.fixed_dictionaries({}, optional={name: st.one_of(VALUES, WHOLE) for name in shape})


BODIES = st.one_of(
    st.binary(max_size=200),
    VALUES.map(codec.encode),
    st.fixed_dictionaries(
        {
            "items": st.lists(
                plausible(["job_id", "attempt", "state", "pct", "note", "exit_code", "failure", "logs", "artifacts"]), max_size=4
            )
        }
    ).map(codec.encode),
    plausible(["node_id", "slots", "gpu_slots", "wait_s", "held", "protocol", "filters", "load", "free_mb", "health"]).map(
        codec.encode
    ),
    plausible(
        ["command", "args", "labels", "priority", "retries", "ttl_s", "timeout_s", "job_id", "queue", "env", "params", "array"]
    ).map(codec.encode),
    st.sampled_from(
        [b"[" * 5000, b'{"a":' * 5000, b'"', b"\xef\xbb\xbf{}", b"{}" * 3, b"1" * 5000, b'{"items":[' + b"{}," * 3000 + b"{}]}"]
    ),
)
TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(["%00", "..", "%2e%2e", "%ff", "a%0ab", "-1", "1e9", "9" * 40]))
TYPES = st.sampled_from(
    [
        "application/json",
        "multipart/form-data; boundary=b",
        "application/x-ndjson",
        "",
        "multipart/form-data",
        "text/plain; charset=\xff",
    ]
)
KINDS = st.sampled_from(["api", "node", "join", "none"])


async def one(rig: Rig, route, token, path, query, body, kind):
    template = re.sub(r"\{[\w:]+\}", lambda _: quote(path, safe="%") or "x", route.url)
    headers = [(b"content-type", kind.encode("latin-1")), (b"upload-offset", b"0")]
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    answer = await rig.http.request(
        route.method, rig.url + template, headers=headers,
        params={"limit": query, "attempt": query, "follow": query, "wait_s": "0"},
        content=body if route.body is not Body.NONE else None,
    )  # fmt: skip
    assert answer.status_code < 500, (route.name, body, answer.text)
    assert answer.headers["ostler-version"]
    if answer.status_code >= 400 and route.method != "HEAD":
        assert answer.headers["content-type"] == "application/problem+json", (route.name, answer.text)


@pytest.fixture(scope="module")
def loop():
    """One loop and one coordinator for all examples."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def rig(loop, tmp_path_factory):
    context = coordinator(tmp_path_factory.mktemp("fuzz") / "c")
    made = loop.run_until_complete(context.__aenter__())
    node = loop.run_until_complete(made.enrolled("n-fuzz"))
    held = loop.run_until_complete(node.take(job_id="j-fuzz", artifacts=[{"path": "a"}]))
    made.tokens = {"api": ADMIN, "node": node.token, "join": loop.run_until_complete(made.join_token(1000)), "none": None}
    made.held = held
    yield made
    loop.run_until_complete(context.__aexit__(None, None, None))


@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(st.sampled_from(ROUTES), KINDS, TEXTS, TEXTS, BODIES, TYPES)
def test_no_input_is_a_crash(rig, loop, route, kind, path, query, body, media):
    loop.run_until_complete(one(rig, route, rig.tokens[kind], path, query, body, media))


HOT = [route for route in ROUTES if route.body is not Body.NONE]


@settings(
    max_examples=500,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(st.sampled_from(HOT), BODIES, TYPES)
def test_no_body_is_a_crash_for_who_may_send_it(rig, loop, route, body, media):
    kind = {"node": "node", "client": "api", "member": "api", "enrol": "join"}[route.audience.value]
    loop.run_until_complete(one(rig, route, rig.tokens[kind], "j-fuzz", "1", body, media))


FORM = st.lists(
    st.one_of(
        st.sampled_from(
            [b"--b\r\n", b"--b--\r\n", b"--b", b"\r\n", b"\r\n\r\n", b"--", b"b",
             b'Content-Disposition: form-data; name="metadata"\r\n',
             b'Content-Disposition: form-data; name="artifacts"; filename="a"\r\n', b"Content-Disposition: x\r\n", b": \r\n",
             codec.encode(m.Outcome(job_id="j-fuzz", attempt=1, exit_code=0)), b'{"job_id":"j-fuzz"}', b"\0", b"\xff" * 50]
        ),
        st.binary(max_size=30),
    ),
    max_size=14,
).map(b"".join)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(FORM)
def test_no_form_is_a_crash_and_none_leaves_a_file(rig, loop, body):
    headers = {"Authorization": f"Bearer {rig.tokens['node']}", "Content-Type": "multipart/form-data; boundary=b"}
    answer = loop.run_until_complete(rig.http.post("/jobs/result", content=body, headers=headers))
    assert answer.status_code < 500, (body, answer.text)
    assert rig.staged == []
