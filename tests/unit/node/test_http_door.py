"""The node's small HTTP server, over real sockets."""

import asyncio
import logging

import pytest

from ostler.node.http_door import MAX_BODY, HttpDoor, Reply, Request


async def serve(request: Request) -> Reply:
    if request.path == "/bug":
        raise RuntimeError("secret detail")
    return Reply(200, f"{request.method} {request.path} {dict(request.query)}".encode(), "text/plain")


@pytest.fixture
async def door():
    one = HttpDoor(logger=logging.getLogger("t"))
    await one.listen("127.0.0.1:0", serve)
    yield one
    await one.close()


async def talk(door, *pieces):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    if not pieces or b"Connection: close" not in pieces[-1]:
        writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def test_requests_on_one_connection_are_answered_in_turn(door):
    answer = await talk(
        door,
        b"GET /a?x=1 HTTP/1.1\r\nHost: n\r\n\r\n",
        b"POST /b HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
    )
    assert b"GET /a {'x': '1'}" in answer
    assert b"POST /b {}" in answer


async def test_head_has_no_body(door):
    answer = await talk(door, b"HEAD /a HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"200" in head
    assert body == b""


async def test_a_bug_is_told_without_detail_and_costs_only_that_request(door, caplog):
    answer = await talk(door, b"GET /bug HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
    assert b"500" in answer
    assert b"secret" not in answer
    assert b"200" in await talk(door, b"GET /a HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    "piece",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * (MAX_BODY * 2) + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000,
        b"",
    ],
    ids=["not http", "long header", "long body", "nothing"],
)
async def test_what_is_not_a_request_is_hung_up_on(door, piece):
    try:
        answer = await talk(door, piece)
    except ConnectionError:
        answer = b""
    assert b"200" not in answer


async def test_a_bad_address_is_a_warning(caplog):
    one = HttpDoor(logger=logging.getLogger("t"))
    for address in ("nonsense", "127.0.0.1:99999999", "192.0.2.1:1"):
        await one.listen(address, serve)
    await one.listen("off", serve)
    assert [record.message for record in caplog.records] == ["health_not_served"] * 3
    await one.close()


async def test_the_local_socket_replaces_that_of_an_earlier_daemon(tmp_path):
    path = tmp_path / "daemon.sock"
    one, two = HttpDoor(logger=logging.getLogger("t")), HttpDoor(logger=logging.getLogger("t"))
    await one.listen_locally(path, serve)
    await two.listen_locally(path, serve)
    assert path.stat().st_mode & 0o777 == 0o600
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /a HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
    assert b"200" in await reader.read()
    writer.close()
    await two.close()
    assert not path.exists()
    await one.close()


async def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path, caplog):
    path = tmp_path / "daemon.sock"
    path.write_text("precious")
    one = HttpDoor(logger=logging.getLogger("t"))
    await one.listen_locally(path, serve)
    assert path.read_text() == "precious"
    assert "control_not_served" in caplog.text
    await one.close()
