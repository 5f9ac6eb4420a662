"""The calls of the hot path against servers that answer well, badly, late and not at all: real sockets, real TLS."""

import asyncio
import datetime
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ostler.model.errors import CoordinatorUnreachable, InvalidSpec
from ostler.protocol import connection, routes
from ostler.protocol.client import AsyncClient, Client
from ostler.protocol.connection import BlockingCalls, DirectCalls, ProtocolViolation, direct_to
from ostler.protocol.trust import Trust

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: a\r\n\r\nok"


class Server:
    """Answers each request with what `answers` gives next; remembers requests and how many connections there were."""

    def __init__(self, context=None):
        self.context = context
        self.answers: list[bytes | None] = []
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        scheme = "https" if self.context else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        for writer in self.writers:
            writer.close()
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader, writer):
        self.connections += 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                self.requests.append(head + body)
                self.asked.set()
                answer = self.answers.pop(0) if self.answers else GOOD
                if answer is None:
                    break
                close = answer.endswith(b"<close>")
                writer.write(answer.removesuffix(b"<close>"))
                if close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server():
    async with Server() as made:
        yield made


class Threaded(BlockingCalls):
    """For these tests, which run the server in the event loop."""

    async def call(self, *args, **kwargs):
        return await asyncio.to_thread(super().call, *args, **kwargs)


@pytest.fixture(params=[DirectCalls, Threaded])
async def calls(request, server):
    made = request.param(direct_to(server.url), context=None, keep_s=30)
    yield made
    made.close()


async def call(calls, server, *, path="/x", headers=None, content=b"", method="POST", answer_s=5.0):
    return await calls.call(method, server.url + path, headers or {}, content, connect_s=5.0, answer_s=answer_s)


async def test_a_call_and_its_answer(calls, server):
    status, headers, body = await call(calls, server, path="/a?b=c", headers={"Authorization": "Bearer t"}, content=b"{}")
    assert (status, headers["x-one"], body) == (200, "a", b"ok")
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    assert sent == b"{}"
    assert head.split(b"\r\n")[0] == b"POST /a?b=c HTTP/1.1"
    assert set(head.split(b"\r\n")[1:]) == {
        b"Authorization: Bearer t",
        b"Content-Length: 2",
        b"Host: 127.0.0.1:%d" % server.port,
    }


async def test_a_get_has_no_length_and_an_empty_post_has_one(calls, server):
    await call(calls, server, method="GET")
    await call(calls, server)
    assert b"ontent-" not in server.requests[0]
    assert b"Content-Length: 0" in server.requests[1]


async def test_one_connection_serves_call_after_call_and_as_many_as_overlap(calls, server):
    for _ in range(5):
        await call(calls, server)
    assert server.connections == 1
    await asyncio.gather(*(call(calls, server) for _ in range(4)))
    assert 2 <= server.connections <= 4
    before = server.connections
    await call(calls, server)
    assert server.connections == before


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, b"ok"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nuntil the end<close>", b"until the end"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold<close>", b"old"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: 1\r\n\r\nx", b"x"),
    ],
)
async def test_all_shapes_of_an_answer(calls, server, answer, body):
    server.answers = [answer]
    assert (await call(calls, server))[2] == body
    assert (await call(calls, server))[2] == b"ok"


async def test_a_connection_that_says_close_is_not_used_again(calls, server):
    server.answers = [GOOD.replace(b"X-One: a", b"Connection: close")]
    await call(calls, server)
    await call(calls, server)
    assert server.connections == 2


async def noticed(calls):
    """The only connection that is kept has heard of its end."""
    [(_, kept)] = calls._idle
    while not kept.closed:  # noqa: ASYNC110 - nothing tells when the socket is read
        await asyncio.sleep(0)


async def test_one_that_was_closed_meanwhile_or_was_idle_for_long_is_not_used_again(calls, server):
    await call(calls, server)
    server.writers[0].close()
    await noticed(calls)
    await call(calls, server)
    assert server.connections == 2
    calls._keep_s = 0.0
    await call(calls, server)
    assert server.connections == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolViolation),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf<close>", ConnectionError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc<close>", ConnectionError),
        (b"HTTP/1.1 200 OK\r\nContent-Le<close>", ConnectionError),
        (b"HTTP/1.1 200 OK\r\nX-One: a\r\n<close>", ConnectionError),
        (b"HTTP/1.1 100 Continue\r\n\r\n<close>", ConnectionError),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", ProtocolViolation),
        (None, ConnectionError),
    ],
)
async def test_a_broken_answer_is_an_error_and_never_a_short_one(calls, server, answer, error):
    server.answers = [answer]
    with pytest.raises(error):
        await call(calls, server)
    assert (await call(calls, server))[2] == b"ok"


async def test_silence_ends_in_time_and_the_late_answer_reaches_nobody(calls, server):
    server.answers = [b"", GOOD]
    with pytest.raises(TimeoutError, match="nothing came back"):
        await call(calls, server, answer_s=0.1)
    assert (await call(calls, server))[2] == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize("calls", [DirectCalls], indirect=True)  # nobody cancels a thread
async def test_a_cancelled_call_takes_its_connection_with_it(calls, server):
    server.answers = [b""]
    waiting = asyncio.create_task(call(calls, server))
    await server.asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.wait_for(server.writers[0].wait_closed(), 5) is None
    assert (await call(calls, server))[2] == b"ok"


async def test_bytes_that_nobody_asked_for_close_the_connection(calls, server):
    await call(calls, server)
    server.writers[0].write(GOOD)
    await noticed(calls)
    assert (await call(calls, server))[2] == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize("more", [GOOD.replace(b"ok", b"no"), b"HTTP/1.1 200 OK\r\nX-One", b"what is no answer"])
async def test_nor_is_a_connection_used_again_that_gave_more_than_the_answer(calls, server, more):
    server.answers = [GOOD + more, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"]
    assert (await call(calls, server))[2] == b"ok"
    assert (await call(calls, server))[2] == b"right"
    assert server.connections == 2


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: " + b"a" * 3000, b"HTTP/1.1 100 Continue\r\n\r\n" * 100])
async def test_an_endless_head_is_cut(calls, server, monkeypatch, head):
    monkeypatch.setattr(connection, "MAX_HEAD_BYTES", 2048)
    server.answers = [head]
    with pytest.raises(ProtocolViolation, match="longer than"):
        await call(calls, server)


async def test_an_endless_answer_is_cut(calls, server, monkeypatch):
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 1000)
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000]
    with pytest.raises(ProtocolViolation, match="longer than"):
        await call(calls, server)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/x", {"Authorization": "a\r\nX-Evil: 1"}),
        ("/x", {"Authorization": "a\nb"}),
        ("/x", {"A\0": "b"}),
        ("/x", {"Authorization": "naïve"}),
        ("/x y HTTP/1.1\r\nX: y", {}),
        ("/a b", {}),
        ("/ü", {}),
    ],
)
async def test_what_would_be_another_request_is_not_sent(calls, server, path, headers):
    with pytest.raises(InvalidSpec):
        await call(calls, server, path=path, headers=headers)
    assert server.requests == []


@pytest.mark.parametrize("closes", [False, True])
async def test_a_refusal_is_heard_before_all_is_sent(calls, server, closes):
    """A coordinator answers before it has read a body that is too large, and closes."""

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!")
        await writer.drain()
        if closes:
            writer.write_eof()
        await over.wait()
        writer.close()

    over = asyncio.Event()
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        made = type(calls)(direct_to(f"http://127.0.0.1:{port}"), context=None, keep_s=30)
        url = f"http://127.0.0.1:{port}/x"
        status, _, body = await made.call("POST", url, {}, b"x" * 30_000_000, connect_s=5.0, answer_s=20.0)
        over.set()
        made.close()
    assert (status, body) == (413, b"no!")
    assert not made._idle


async def test_a_large_body_arrives_whole(calls, server):
    content = bytes(range(256)) * 20_000
    assert (await call(calls, server, content=content))[2] == b"ok"
    assert server.requests[0].endswith(b"\r\n\r\n" + content)


async def test_connections_that_nobody_used_for_long_are_closed(server):
    calls = Threaded(direct_to(server.url), context=None, keep_s=30)
    await asyncio.gather(*(call(calls, server) for _ in range(4)))
    kept = [one for _, one in calls._idle]
    calls._idle.extend([(since - 60, one) for since, one in calls._idle])
    for _ in kept:
        calls._idle.popleft()
    await call(calls, server)
    assert len(calls._idle) == 1
    assert all(one._socket.fileno() < 0 for one in kept)
    calls.close()


def test_ctrl_c_while_the_parser_tells_of_an_answer_is_ctrl_c(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(connection._Reading, "on_body", interrupted)
    reading = connection._Reading()
    reading.begin()
    with pytest.raises(KeyboardInterrupt):
        reading.feed(GOOD)


async def test_a_name_that_no_host_has():
    for kind in (DirectCalls, Threaded):
        calls = kind(direct_to("http://a..b:1"), context=None, keep_s=30)
        with pytest.raises(ConnectionError, match=r"a\.\.b"):
            await calls.call("GET", "http://a..b:1/x", {}, b"", connect_s=5.0, answer_s=5.0)


async def test_the_scheme_may_be_written_in_any_letters(server):
    server.answers = [b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}']
    with Client(server.url.replace("http", "HTTP")) as client:
        assert await asyncio.to_thread(client.call, routes.HEALTHZ, shape=None) == b'{"status":"ok"}'


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n\r\nhalf"])
async def test_close_ends_what_is_under_way(calls, server, begun):
    server.answers = [begun]
    waiting = asyncio.create_task(call(calls, server))
    await server.asked.wait()
    while begun and not any(one._reading._open_ended for one in calls._busy):  # noqa: ASYNC110 - nothing tells how far the parser is
        await asyncio.sleep(0)
    calls.close()
    with pytest.raises(ConnectionError):
        await waiting


@pytest.mark.parametrize("kind", [DirectCalls, Threaded])
async def test_nobody_listens(kind):
    async with Server() as server:
        pass
    calls = kind(direct_to(server.url), context=None, keep_s=30)
    with pytest.raises(ConnectionRefusedError):
        await call(calls, server)


def test_which_addresses_are_called_directly(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert direct_to("http://c.example:8765").port == 8765
    assert direct_to("https://[::1]:8765").hostname == "::1"
    for other in ("ftp://c", "c:8765", "http://", "http://u:p@c", "http://bücher.example"):
        assert direct_to(other) is None
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost,.inside.example")
    assert direct_to("http://c.example") is None
    assert direct_to("https://c.example") is not None
    assert direct_to("http://localhost:1") is not None
    assert direct_to("http://c.inside.example") is not None


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


async def test_tls_is_verified(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    answer = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
    async with Server(context) as server:
        server.answers = [answer] * 2
        async with AsyncClient(server.url, trust=Trust(ca_file=certificate / "cert.pem")) as trusting:
            assert await trusting.call(routes.HEALTHZ, shape=None) == b'{"status":"ok"}'
        async with AsyncClient(server.url, trust=Trust(verify=False)) as careless:
            assert await careless.call(routes.HEALTHZ, shape=None) == b'{"status":"ok"}'
        async with AsyncClient(server.url) as careful:
            with pytest.raises(CoordinatorUnreachable, match="certificate"):
                await careful.call(routes.HEALTHZ, shape=None)
        server.answers = [answer] * 2
        with Client(server.url, trust=Trust(ca_file=certificate / "cert.pem")) as trusting:
            for _ in range(2):
                assert await asyncio.to_thread(trusting.call, routes.HEALTHZ, shape=None) == b'{"status":"ok"}'
        with Client(server.url) as careful, pytest.raises(CoordinatorUnreachable, match="certificate"):
            await asyncio.to_thread(careful.call, routes.HEALTHZ)
        async with AsyncClient(f"https://localhost:{server.port}", trust=Trust(ca_file=certificate / "cert.pem")) as misled:
            with pytest.raises(CoordinatorUnreachable, match="localhost"):
                await misled.call(routes.HEALTHZ, shape=None)
