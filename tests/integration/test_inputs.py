"""Inputs against a real HTTP server that breaks off, lies, stalls and redirects: what arrives is right or refused."""

import asyncio
import contextlib
import gzip
import hashlib
import ipaddress
import os
import re
import socket
import subprocess
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from ostler.model.errors import CoordinatorUnreachable, NotFound
from ostler.model.failures import Failure, FailureCode
from ostler.model.manifest import InputFile, Inputs, InputUrl
from ostler.node.input_cache import InputCache
from ostler.node.input_download import DownloadLimits
from ostler.node.inputs import InputLimits, InputReport, materialise
from ostler.node.workspace import Owner, Workspace

CONTENT = bytes(range(256)) * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()

Headers = dict[str, str]
Answer = Callable[["Server", Headers, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """HTTP by hand, so that it can break every rule. Each path has its answers; the last one is repeated."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, Headers]] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.two_asked = asyncio.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def on(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return self.url(path)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            target = head.split(" ")[1]
            headers = {k.lower(): v for k, v in re.findall(r"^([\w-]+): (.*)\r$", head, re.M)}
            self.asked.append((target, headers))
            if len(self.asked) == 2:
                self.two_asked.set()
            answers = self.answers.get(target.partition("?")[0], [status(404)])
            await (answers.pop(0) if len(answers) > 1 else answers[0])(self, headers, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client had enough
        finally:
            writer.close()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def status(code: int, **headers: str) -> Answer:
    async def answer(_: Server, __: Headers, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {code} Because", "Content-Length: 0", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    return answer


def whole(content: bytes = CONTENT, *, stop: int | None = None, length: int | None = None, **headers: str) -> Answer:
    """All of it, or as much as `stop` before the connection breaks; `length` is what is announced (-1: nothing)."""

    async def answer(_: Server, __: Headers, writer: asyncio.StreamWriter) -> None:
        lines = ["HTTP/1.1 200 OK", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        if length != -1:
            lines.append(f"Content-Length: {len(content) if length is None else length}")
        else:
            lines.append("Transfer-Encoding: chunked")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        for at in range(0, len(content[:stop]), 65536):
            piece = content[at : min(at + 65536, len(content) if stop is None else stop)]
            writer.write(piece if length != -1 else b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if length == -1 and stop is None:
            writer.write(b"0\r\n\r\n")

    return answer


def part(content: bytes = CONTENT, *, stop: int | None = None, shift: int = 0, total: str | None = None) -> Answer:
    """What a range asks for, as a good server gives it (`shift` and `total` make it a bad one)."""

    async def answer(_: Server, headers: Headers, writer: asyncio.StreamWriter) -> None:
        start = int(headers["range"].removeprefix("bytes=").removesuffix("-")) + shift
        piece = content[start:]
        said = f"bytes {start}-{len(content) - 1}/{total or len(content)}"
        writer.write(f"HTTP/1.1 206 Part\r\nContent-Range: {said}\r\nContent-Length: {len(piece)}\r\n\r\n".encode())
        writer.write(piece if stop is None else piece[:stop])

    return answer


async def stall(_: Server, __: Headers, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    await writer.drain()
    await asyncio.Event().wait()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listening.close()
        await made.close()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as made:
        yield made


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    (tmp_path / "jobs").mkdir()
    return Workspace.create(tmp_path / "jobs", "j-1", 1)


class Given:
    """`materialise` with what a test does not care about."""

    def __init__(self, client: httpx.AsyncClient, space: Workspace) -> None:
        self.client = client
        self.space = space
        self.slept: list[float] = []
        self.blobs: dict[str, list[bytes | Exception]] = {}
        self.fetched: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def fetch(self, sha256: str) -> AsyncIterator[bytes]:
        self.fetched.append(sha256)
        for piece in self.blobs.get(sha256, [NotFound(f"no blob {sha256}")]):
            if isinstance(piece, Exception):
                if sha256 in self.blobs:
                    self.blobs[sha256].remove(piece)
                raise piece
            yield piece

    async def bring(self, *urls: str | InputUrl, files=(), inline=None, limits=None, cache=None) -> Failure | InputReport:
        inputs = Inputs(urls=urls, files=tuple(files), inline=inline or {})
        return await materialise(
            inputs, self.space, fetch=self.fetch, client=self.client, limits=limits, cache=cache, sleep=self.sleep
        )

    async def refused(self, *urls, says: str = "", code: FailureCode = FailureCode.INPUT, **more) -> str:
        result = await self.bring(*urls, **more)
        assert isinstance(result, Failure), result
        assert result.code is code, result
        assert says in result.message
        assert os.listdir(self.space.input) == os.listdir(self.space.work) == []
        assert sorted(os.listdir(self.space.path)) == ["input", "logs", "output", "work"]
        return result.message


@pytest.fixture
def given(client: httpx.AsyncClient, space: Workspace) -> Given:
    return Given(client, space)


async def test_all_kinds_arrive_under_their_names_and_are_seen_in_the_working_directory(server, given, space):
    one = server.on("/some/in%20put.mp4", whole())
    given.blobs[SHA] = [CONTENT[:1000], CONTENT[1000:]]
    result = await given.bring(
        one,
        InputUrl(url=server.on("/x", whole(length=-1)), name="second", sha256=SHA, max_mb=1),
        inline={"text": "héllo", "empty": ""},
        files=[InputFile(name="blob", sha256=SHA, size=len(CONTENT))],
    )
    assert isinstance(result, InputReport), result
    assert [(fact.name, fact.source, fact.size, fact.sha256) for fact in result.inputs] == [
        ("in put.mp4", "url", len(CONTENT), SHA),
        ("second", "url", len(CONTENT), SHA),
        ("text", "inline", 6, hashlib.sha256("héllo".encode()).hexdigest()),
        ("empty", "inline", 0, hashlib.sha256().hexdigest()),
        ("blob", "file", len(CONTENT), SHA),
    ]
    for name in ("in put.mp4", "second", "blob"):
        assert (space.input / name).read_bytes() == CONTENT
        assert (space.work / name).readlink() == Path("../input") / name
    assert (space.work / "text").read_text() == "héllo"
    assert sorted(os.listdir(space.path)) == ["input", "logs", "output", "work"]


async def test_without_inputs_nothing_happens_not_even_a_thread(given):
    assert await given.bring() == InputReport()
    assert asyncio.get_running_loop()._default_executor is None  # how else would one see that no thread was started


async def test_a_second_try_in_the_same_workspace_is_fine(server, given, space):
    url = server.on("/a", whole(b"first"), whole(b"second"))
    assert isinstance(await given.bring(url), InputReport)
    assert isinstance(await given.bring(url), InputReport)
    assert (space.work / "a").read_bytes() == b"second"


async def test_answers_that_are_final(server, given):
    message = await given.refused(server.on("/gone?x=secret", status(404)) + "?signature=secret", says="answered 404 Because")
    assert f"http://127.0.0.1:{server.port}/gone" in message
    assert "secret" not in message
    await given.refused(server.on("/a", status(403)), says="answered 403")
    await given.refused(server.on("/a", status(204)), says="answered 204")
    await given.refused(server.on("/a", status(206)), says="answered 206")
    assert given.slept == []


async def test_answers_that_are_tried_again(server, given, space):
    url = server.on("/a", status(500), status(503, Retry_After="7"), status(429), whole(b"x"))
    assert isinstance(await given.bring(url), InputReport)
    assert len(given.slept) == 3
    assert given.slept[1] == 7.0
    await_ = server.on("/b", status(502))
    given.space = Workspace.create(space.path.parent, "j-2", 1)
    await given.refused(await_, says="answered 502 Because; gave up after 5 tries")
    assert len(server.asked) == 4 + 5


async def test_a_server_that_is_not_there(given):
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        await given.refused(f"http://127.0.0.1:{taken.getsockname()[1]}/a", says="gave up after 5 tries")
    await given.refused("http://does-not-exist.invalid/a", says="gave up after 5 tries")


async def test_a_broken_connection_is_resumed(server, given, space):
    url = server.on("/a", whole(stop=100_000, ETag='"v1"'), part(stop=50_000), part())
    assert isinstance(await given.bring(url), InputReport)
    assert (space.input / "a").read_bytes() == CONTENT
    assert [headers.get("range") for _, headers in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert [headers.get("if-range") for _, headers in server.asked] == [None, '"v1"', '"v1"']
    assert all(headers["accept-encoding"] == "identity" for _, headers in server.asked)


async def test_a_line_that_breaks_often_but_moves_is_not_given_up(server, given, space):
    url = server.on("/a", whole(stop=1000, Last_Modified="then"), *[part(stop=1000) for _ in range(20)], part())
    assert isinstance(await given.bring(url), InputReport)
    assert (space.input / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": '"ä"'}])
async def test_without_a_promise_that_it_is_the_same_it_starts_anew(server, given, space, headers):
    other = bytes(reversed(CONTENT))
    url = server.on("/a", whole(stop=100_000, **headers), whole(other))
    assert isinstance(await given.bring(url), InputReport)
    assert (space.input / "a").read_bytes() == other
    assert "range" not in server.asked[1][1]


async def test_a_known_hash_is_promise_enough(server, given, space):
    url = server.on("/a", whole(stop=100_000), part())
    assert isinstance(await given.bring(InputUrl(url=url, sha256=SHA)), InputReport)
    assert (space.input / "a").read_bytes() == CONTENT
    assert server.asked[1][1]["range"] == "bytes=100000-"


@pytest.mark.parametrize(
    "answers",
    [
        [whole(b"new" * 1000, ETag='"v2"')],  # changed: the server sends all of the new one
        [status(416), whole(b"new" * 1000)],
        [part(shift=5), whole(b"new" * 1000)],
        [part(total="*"), whole(b"new" * 1000)],
        [part(CONTENT + b"longer"), whole(b"new" * 1000)],
    ],
)
async def test_two_versions_never_mix(server, given, space, answers):
    url = server.on("/a", whole(stop=100_000, ETag='"v1"'), *answers)
    assert isinstance(await given.bring(url), InputReport)
    assert (space.input / "a").read_bytes() == b"new" * 1000


async def test_another_part_is_not_taken_for_the_missing_one(server, given, space):
    """Without an announced length nothing but the range itself tells."""
    url = server.on("/a", whole(length=-1, stop=100_000, ETag='"v1"'), part(shift=5), whole(b"new"))
    assert isinstance(await given.bring(url), InputReport)
    assert (space.input / "a").read_bytes() == b"new"


async def test_a_connection_that_always_breaks_is_given_up(server, given):
    await given.refused(server.on("/a", whole(stop=100_000)), says="gave up after 5 tries")
    await given.refused(server.on("/a", whole(length=-1, stop=100_000)), says="gave up after 5 tries")
    await given.refused(server.on("/a", whole(b"", length=5)), says="gave up after 5 tries")


async def test_the_wrong_content(server, given, tmp_path):
    cache = InputCache(tmp_path / "cache", max_bytes=1 << 30)
    url = InputUrl(url=server.on("/a", whole(b"other")), sha256=SHA)
    message = await given.refused(url, says=f"not {SHA} as declared", cache=cache)
    assert hashlib.sha256(b"other").hexdigest() in message
    assert cache.bytes == 0


async def test_too_large(server, given, space):
    big = b"x" * (1 << 20) + b"y"
    for length in (None, -1):
        url = InputUrl(url=server.on("/a", whole(big, length=length)), max_mb=1)
        await given.refused(url, says="too large")
    endless = InputUrl(url=server.on("/a", whole(b"", length=1 << 50)), max_mb=1)
    await given.refused(endless, says="too large")
    assert given.slept == []
    limits = InputLimits(max_mb=1)
    await given.refused(InputUrl(url=server.on("/a", whole(big)), max_mb=100), says="too large", limits=limits)
    half = b"x" * (600 << 10)
    two = [server.on("/a", whole(half)), server.on("/b", whole(half, length=-1))]
    await given.refused(*two, says="larger than the 1 MB in all", limits=limits)
    await given.refused(
        says="larger than the 1 MB in all", inline={"a": "x" * (600 << 10), "b": "x" * (600 << 10)}, limits=limits
    )
    broken = server.on("/c", whole(half, stop=500 << 10, ETag='"1"'), whole(half))
    assert isinstance(await given.bring(broken, limits=limits), InputReport)  # a restart gives its bytes back


async def test_redirects(server, given, space):
    server.on("/real", whole(b"real"))
    url = server.on("/a", status(302, Location="/b"))
    server.on("/b", status(308, Location=server.url("/real")))
    assert isinstance(await given.bring(url), InputReport)
    assert (space.input / "a").read_bytes() == b"real"


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("ftp://host/x", "only http and https"),
        ("gopher://host/x", "only http and https"),
        ("http:///none", "answered 404"),  # by the rules of URLs this is here
        ("/a", "redirects more than 5 times"),
        ("http://169.254.169.254/latest/meta-data", "fetches nothing"),
        ("http://[::ffff:169.254.169.254]/", "fetches nothing"),
        ("http://[fe80::1]/", "fetches nothing"),
        ("http://[bad/", ""),
    ],
)
async def test_redirects_to_where_nothing_is_fetched(server, given, location, says):
    await given.refused(server.on("/a", status(302, Location=location)), says=says)


async def test_a_name_that_leads_to_a_forbidden_address(server, given):
    """What counts is who answered: a name server may tell one address now and another later."""
    denied = DownloadLimits(denied=(ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))
    server.on("/a", whole(b"internal"))
    url = f"http://localhost:{server.port}/a"
    await given.refused(url, says="fetches nothing", limits=InputLimits(download=denied))
    assert len(server.asked) == 1
    await given.refused("http://169.254.169.254/x", says="fetches nothing")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "x", "/etc/passwd", "http://", "http:///x", "http://[/x", "http://a\0b/x"]
)
async def test_other_urls(given, url):
    await given.refused(InputUrl(url=url, name="x"))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../x", "/etc/passwd", "a\0b", "a\nb", "-rf", "x" * 256, "é" * 128, "\ud800", "a\\b", "\x7f"],
)
async def test_names_that_escape_or_mislead(server, given, name):
    url = server.on("/a", whole(b"x"))
    await given.refused(InputUrl(url=url, name=name))
    await given.refused(inline={name: "x"})
    message = await given.refused(files=[InputFile(name=name, sha256=SHA, size=1)])
    message.encode()
    assert server.asked == []


@pytest.mark.parametrize(
    "path", ["/", "/..", "/a/..%2f..%2fetc%2fpasswd", "/%2e%2e", "/a%00b", "/%ff", "/-x", "/a/", "/" + "x" * 256]
)
async def test_urls_whose_last_part_is_no_name(server, given, path):
    await given.refused(server.url(path))
    assert server.asked == []


async def test_names_that_meet(server, given):
    url = server.on("/a", whole(b"x"))
    await given.refused(url, inline={"a": "x"}, says="two inputs have the name 'a'")
    await given.refused(url, url, says="two inputs have the name 'a'")
    await given.refused(inline={"bad": "\ud800"}, says="not valid Unicode")


async def test_an_error_does_not_tell_credentials(given):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = await given.refused(f"http://user:pass123@{address}/a?token=tok123#frag123")
    assert "123@" not in message
    assert "tok123" not in message
    assert f"http://{address}/a?…" in message


async def test_a_server_that_stalls(server, given):
    slow = InputLimits(download=DownloadLimits(idle_s=0.05, tries=2))
    await given.refused(server.on("/a", stall), says="gave up after 2 tries", limits=slow)
    await given.refused(server.on("/a", stall), says="longer than 0.05 s", limits=InputLimits(total_s=0.05))


async def test_cancelling_leaves_nothing_behind(server, given, space):
    task = asyncio.create_task(given.bring(server.on("/a", stall), server.on("/b", whole()), inline={"c": "x"}))
    await server.two_asked.wait()
    before = len(asyncio.all_tasks())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) <= before
    assert sorted(os.listdir(space.path)) == ["input", "logs", "output", "work"]
    assert os.listdir(space.input) == []


async def test_encoded_content_is_taken_as_it_is_sent(server, given, space):
    packed = gzip.compress(b"x" * 10_000_000)
    assert isinstance(await given.bring(server.on("/a.gz", whole(packed, Content_Encoding="gzip"))), InputReport)
    assert (space.input / "a.gz").read_bytes() == packed


async def test_what_is_known_by_its_hash_is_fetched_once(server, given, space, tmp_path):
    cache = InputCache(tmp_path / "cache", max_bytes=1 << 30)
    url = InputUrl(url=server.on("/a", whole()), sha256=SHA)
    plain = server.on("/plain", whole())
    given.blobs[SHA] = [CONTENT]
    first = await given.bring(url, plain, cache=cache)
    assert [fact.cached for fact in first.inputs] == [False, False]
    given.space = Workspace.create(space.path.parent, "j-2", 1)
    blob = InputFile(name="blob", sha256=SHA, size=len(CONTENT))
    second = await given.bring(url, plain, files=[blob], cache=cache)
    assert [fact.cached for fact in second.inputs] == [True, False, True]
    assert {fact.sha256 for fact in second.inputs} == {SHA}
    assert sorted(path for path, _ in server.asked) == ["/a", "/plain", "/plain"]
    assert given.fetched == []
    copied = given.space.input / "a"
    assert copied.read_bytes() == CONTENT
    assert copied.stat().st_nlink == 1
    copied.write_bytes(b"a job may write to its inputs")
    given.space = Workspace.create(space.path.parent, "j-3", 1)
    await given.refused(InputUrl(url=url.url, sha256=SHA), says="too large", limits=InputLimits(max_mb=0), cache=cache)
    await given.refused(files=[InputFile(name="blob", sha256=SHA, size=len(CONTENT) + 1)], says="as declared", cache=cache)


async def test_uploaded_files(given, space):
    blob = InputFile(name="blob", sha256=SHA, size=len(CONTENT))
    await given.refused(files=[blob], says="no blob")
    given.blobs[SHA] = [CONTENT[:5], CoordinatorUnreachable("gone for a moment"), CONTENT[5:]]
    # The first try breaks off after five bytes, the second one has them all.
    assert isinstance(await given.bring(files=[blob]), InputReport)
    assert (space.input / "blob").read_bytes() == CONTENT
    assert len(given.slept) == 1
    given.space = Workspace.create(space.path.parent, "j-2", 1)
    given.blobs[SHA] = [CONTENT[:-1]]
    await given.refused(files=[blob], says="sha256")
    given.blobs[SHA] = [CONTENT, b"more"]
    await given.refused(files=[blob], says="too large")
    given.blobs[SHA] = [CONTENT]
    await given.refused(files=[InputFile(name="blob", sha256=SHA, size=len(CONTENT) + 5)], says="bytes, not")
    given.blobs[SHA] = [httpx.ReadError("x") for _ in range(9)]
    await given.refused(files=[blob], says="gave up after 5 tries")


async def test_the_first_trouble_stops_the_rest(server, given):
    urls = [InputUrl(url=server.on(f"/stall{i}", stall), name=f"n{i}") for i in range(20)]
    await given.refused(InputUrl(url=server.on("/none", status(404)), name="none"), *urls, says="answered 404")
    assert len(server.asked) <= 5


async def test_memory_does_not_grow_with_the_file(server, given, space):
    async def large(_: Server, __: Headers, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (96 << 20))
        for _ in range(96 * 16):
            writer.write(bytes(65536))
            await writer.drain()

    tracemalloc.start()
    try:
        assert isinstance(await given.bring(server.on("/large", large)), InputReport)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (space.input / "large").stat().st_size == 96 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
async def test_inputs_belong_to_the_jobs_user(server, given, space):
    given.space = Workspace.create(space.path.parent, "j-2", 1, owner=Owner(1234, 1235))
    assert isinstance(await given.bring(server.on("/a", whole()), inline={"b": "x"}), InputReport)
    for name in ("a", "b"):
        status_ = (given.space.input / name).stat()
        assert (status_.st_uid, status_.st_gid) == (1234, 1235)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
async def test_a_full_disk(server, given, small_disk, tmp_path):
    given.space = Workspace.create(small_disk, "j-1", 1)
    large = b"x" * (3 << 20)
    await given.refused(server.on("/a", whole(large)), code=FailureCode.DISK, says="No space left on device")
    await given.refused(inline={"a": large.decode()}, code=FailureCode.DISK)
    cache = InputCache(tmp_path / "cache", max_bytes=1 << 30)
    known = hashlib.sha256(large).hexdigest()
    with contextlib.suppress(FileNotFoundError), (tmp_path / "large").open("w+b") as file:
        file.write(large)
        file.flush()
        assert cache.put(known, file.fileno())
    await given.refused(InputUrl(url=server.url("/a"), sha256=known), code=FailureCode.DISK, cache=cache)
    keep = InputLimits(keep_free_mb=100)
    await given.refused(server.on("/b", whole(b"x")), code=FailureCode.DISK, says="would be left", limits=keep)
    # Nothing that failed keeps the disk full, and a cache without room fails no job.
    tight = InputCache(small_disk / "cache", max_bytes=1 << 30)
    fits = b"y" * (700 << 10)
    url = InputUrl(url=server.on("/c", whole(fits)), sha256=hashlib.sha256(fits).hexdigest())
    assert isinstance(await given.bring(url, cache=tight), InputReport)
    assert tight.bytes == 0
