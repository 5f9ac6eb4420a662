"""What root makes of a daemon's answers, also of one that wants to hold it up."""

import socket
import threading
import time

import pytest

from ostler.fleet.host import daemon

HEAD = b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n"


def whole(body, status=200):
    return [HEAD % (status, len(body)) + body]


def endless():
    yield b"HTTP/1.1 200 OK\r\n"
    for number in range(10_000):
        time.sleep(0.02)
        yield b"X-%d: a\r\n" % number


@pytest.fixture
def answering(tmp_path):
    """A daemon that says these pieces to whoever asks; it ends with the test."""
    door, threads = tmp_path / "door", []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(door))
    server.listen()

    def start(pieces):
        def serve():
            there, _ = server.accept()
            with there:
                there.recv(4096)
                try:
                    for piece in pieces:
                        there.sendall(piece)
                except OSError:
                    pass

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return door

    yield start
    for thread in threads:
        thread.join(10)
    server.close()
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_is_heard(answering, status):
    body = b'{"release": "1.0-a", "problems": ["x"]}'
    assert daemon.ask(answering(whole(body, status)), "GET", "/healthz") == {"release": "1.0-a", "problems": ["x"]}


@pytest.mark.parametrize(
    "pieces",
    [
        [], [b"\0" * 100], whole(b"[" * 500_000), whole(b'{"a":' * 600 + b"1" + b"}" * 600), whole(b"[]"),
        whole(b'{"a": "%s"}' % (b"x" * 70_000)),
        [HEAD % (200, 50) + b"{}"], [b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n{}"], whole(b'{"a": %s}' % (b"1" * 5000)),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_none(answering, pieces):
    assert daemon.ask(answering(pieces), "GET", "/healthz") is None


def test_a_look_ends_whatever_the_daemon_does(answering, monkeypatch):
    """It drips heads: the patience is for all of them, and whoever looked goes away."""
    monkeypatch.setattr(daemon, "PATIENCE_S", 0.2)
    assert daemon.ask(answering(endless()), "GET", "/healthz") is None


def test_where_nobody_listens_nobody_answers(tmp_path):
    assert daemon.ask(tmp_path / "none", "GET", "/healthz") is None
