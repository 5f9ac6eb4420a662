from datetime import UTC, datetime

import pytest

from ostler.coordinator.api.manifests import LONG, MAX_PROBLEMS, read_manifests
from ostler.model.errors import InvalidSpec, TooLarge
from ostler.model.manifest import Manifest
from pace import at_most

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def read(text: str) -> Manifest:
    [(manifest, spec)] = read_manifests(text.encode(), "application/json", NOW).manifests
    assert spec == text
    return manifest


def test_manifests_that_differ_in_their_ids_alone_keep_all_the_rest() -> None:
    found = [read(f'{{"job_id":"job-{i}","command":"echo","args":["{i // 2}"],"priority":7}}') for i in range(4)]
    assert [one.job_id for one in found] == ["job-0", "job-1", "job-2", "job-3"]
    assert [one.args for one in found] == [("0",), ("0",), ("1",), ("1",)]
    assert {(one.command, one.priority) for one in found} == {("echo", 7)}


@pytest.mark.parametrize("rest", ['"job_id":"b"', '"job\\u005fid":"b"', '"command":"y","job_id":"b"'])
def test_an_id_that_is_told_twice_is_the_last_one_as_any_reader_has_it(rest: str) -> None:
    for _ in range(2):
        assert read(f'{{"job_id":"a","command":"true",{rest}}}').job_id == "b"


def test_an_id_in_the_parameters_is_no_id_of_the_job() -> None:
    for name in ("x", "y"):
        found = read(f'{{"job_id":"job-{name}","task":"t","runner":"python","params":{{"job_id":"{name}"}}}}')
        assert (found.job_id, found.params) == (f"job-{name}", {"job_id": name})


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ('{"job_id":"a","command":3}', "command", "must be text"),
        ('{"job_id":"-a","command":"true"}', "job_id", "starting with a letter or digit"),
        ('{"job_id":"a","command":"true","priority":}', "", "byte 42"),
        ('{"job_id":"a","command":"true","array":3,"array_index":1}', "array_index", "set by the coordinator"),
        ('{"job_id":"' + "a" * 129 + '","command":"true"}', "job_id", "1 to 128"),
    ],
)
def test_mistakes_are_told_of_the_text_as_it_came(text: str, path: str, message: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidSpec) as caught:
            read_manifests(text.encode(), "application/json", NOW)
        assert path in [one.path for one in caught.value.problems]
        assert message in str(caught.value.problems[0])


def many(unit: bytes, size: int) -> bytes:
    return b",".join([unit] * (size // (len(unit) + 1)))


def names(size: int) -> bytes:
    return b",".join(b'"%07d":1' % number for number in range(size // 12))


@pytest.mark.parametrize("size", [LONG - 200, 2**20])
@pytest.mark.parametrize(
    "text",
    [
        lambda size: b"{%b}" % names(size),
        lambda size: b'{"labels":{%b}}' % names(size),
        lambda size: b'{"args":[%b]}' % many(b"1", size),
        lambda size: b'{"depends_on":[%b]}' % many(b"1", size),
        lambda size: b'{"input":{"urls":[%b]}}' % many(b"{}", size),
        lambda size: b'{"command":"a","input":{"urls":[%b]}}' % many(b'""', size),
        lambda size: b'{"command":"a","artifacts":[%b]}' % many(b'{"path":""}', size),
        lambda size: b'{"retries":{"codes":[%b]}}' % many(b"1", size),
        lambda size: b'{"runner":"python","task":"a:b","params":{"batch":[%b]}}' % many(b"1", size),
    ],
)
def test_a_manifest_full_of_mistakes_is_refused_in_a_moment(text, size: int) -> None:
    """What describes mistakes works for each of them: of a body of 64 KiB it was at it for 13 s, in which no other call was answered."""
    raw = text(size)
    with at_most(60), pytest.raises(InvalidSpec) as caught:
        read_manifests(raw, "application/json", NOW)
    assert 1 <= len(caught.value.problems) <= MAX_PROBLEMS + 1
    if b"args" in raw:
        assert caught.value.problems[-1].path == "args[0]"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"[%b]" % many(b"1", 2**26), "application/json"),
        (b"[%b]" % many(b"{}", 2**26), "application/json"),
        (b'{"jobs":[],%b}' % names(2**26), "application/json"),
        (b'{"runner":"python","task":"x","params":{"a":[%b]}}' % many(b"[" * 58 + b"]" * 58, 2**26), "application/json"),
        (b"{\n" * 2**25, "application/x-ndjson"),
        (b"\n" * 2**26, "application/x-ndjson"),
    ],
    ids=("scalars", "empty manifests", "names", "lists in lists", "broken lines", "no lines"),
)
def test_a_body_that_would_fill_the_memory_is_refused_before(raw: bytes, kind: str) -> None:
    with at_most(150), pytest.raises(TooLarge):  # it was 1,500, and 8 GB
        read_manifests(raw, kind, NOW)


def test_ten_thousand_manifests_that_say_much_are_read() -> None:
    one = b'{"command":"true","args":[%b],"labels":{%b},"env":{"A":"[{"},"priority":%%d}' % (
        many(b'"a, b"', 700), b",".join(b'"l%d":"{}"' % number for number in range(60)),
    )  # fmt: skip
    for kind, between, ends, count in (("application/json", b",", b"[]", 10_000), ("application/x-ndjson", b"\n", b"  ", 100)):
        raw = ends[:1] + between.join(one % (number % 100) for number in range(count)) + ends[1:]
        assert len(read_manifests(raw, kind, NOW).manifests) == count
