"""Requests to the network gate: the two forms that a proxy takes, and all else refused without being guessed at."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.node.gate.request import BadRequest, read_request


def head(*lines):
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def test_a_tunnel_forwards_nothing_of_its_head():
    ask = read_request(head("CONNECT Example.org:443 HTTP/1.1", "Host: other.example", "Proxy-Authorization: Basic eA=="))
    assert (ask.host, ask.port, ask.head, ask.tunnel) == ("example.org", 443, b"", True)


def test_a_plain_request_becomes_the_servers():
    ask = read_request(
        head(
            "POST http://a.example:8080/p?q=1 HTTP/1.1", "Host: other.example", "Proxy-Connection: keep-alive",
            "connection: keep-alive", "Content-Length: 3", "X-Name:  v",
        )
    )  # fmt: skip
    assert (ask.host, ask.port, ask.tunnel) == ("a.example", 8080, False)
    assert ask.head == head(
        "POST /p?q=1 HTTP/1.1", "Host: a.example:8080", "Connection: close", "Content-Length: 3", "X-Name:  v"
    )


@pytest.mark.parametrize(("url", "path"), [("http://a.example", "/"), ("HTTP://a.example?q", "/?q")])
def test_odd_urls(url, path):
    ask = read_request(head(f"GET {url} HTTP/1.0"))
    assert (ask.host, ask.port) == ("a.example", 80)
    assert ask.head.startswith(f"GET {path} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    "target",
    [
        "0x7f.1:443", "2130706433:80", "127.1:80", "0177.0.0.1:80", "a%2eexample:443", "127.0.0.1%00.example:443", "user@a.example:1",
        "a.example", "a.example:", "a.example:443:80", "[::1%25lo]:80", "[::1]", "::1:80", "a.example:0", "a..example:443",
    ],
)  # fmt: skip
def test_a_target_that_programs_read_differently_is_refused_and_named(target):
    with pytest.raises(BadRequest) as caught:
        read_request(head(f"CONNECT {target} HTTP/1.1"))
    assert (caught.value.status, caught.value.target) == (403, target)


def test_an_address_is_one_in_whatever_form():
    assert read_request(head("CONNECT [::ffff:127.0.0.1]:443 HTTP/1.1")).host == IPv4Address("127.0.0.1")
    assert read_request(head("GET http://127.0.0.1./ HTTP/1.1")).host == IPv4Address("127.0.0.1")


@pytest.mark.parametrize(
    "bad",
    [
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET https://a.example/ HTTP/1.1\r\n\r\n",
        b"GET ftp://a.example/ HTTP/1.1\r\n\r\n",
        b"GET http://a.example/#f HTTP/1.1\r\n\r\n",
        b"CONNECT a.example:443\r\n\r\n",
        b"CONNECT a.example:443 HTTP/2\r\n\r\n",
        b"CONNECT  a.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT a.example:443 b.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT a.example:443 HTTP/1.1\nX: y\r\n\r\n",
        b"GET http://a.example/\nHost:b.example HTTP/1.1\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\nX: y\rHost: b.example\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\nX: y\nHost: b.example\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\nX : y\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\nX: y\r\n folded\r\n\r\n",
        b"GET http://a.example/ HTTP/1.1\r\nX: \x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(bad):
    with pytest.raises(BadRequest) as caught:
        read_request(bad)
    assert caught.value.status == 400


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_refusal(content):
    for start in (b"", b"CONNECT ", b"GET http://"):
        try:
            ask = read_request(start + content + b"\r\n\r\n")
        except BadRequest:
            continue
        assert ask.head.count(b"\r\n\r\n") <= 1
        assert 1 <= ask.port <= 65535
