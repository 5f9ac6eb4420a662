"""Where webhooks may go, how deliveries are signed, and when they are tried again."""

from datetime import timedelta

import pytest

from ostler.coordinator.webhooks import LONGEST_WAIT, PATIENCE, check_url, next_try, refusal_of, sign
from ostler.model.errors import InvalidSpec


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_what_is_ours_is_refused(address):
    assert "address" in refusal_of(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_what_is_public_is_not(address):
    assert refusal_of(address) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org/", "must begin with https"), ("https://", "must begin with https"), ("x", "must begin with https"),
        ("https://u:p@example.org/", "name or a password"), ("https://example.org/#x", "'#'"), ("https://example.org:99999/", "not a URL"),
        ("https://exa mple.org/", "spaces"), ("https://example.org/\r\nX: y", "printable"), ("https://exämple.org/", "ASCII"),
        ("https://example.org/" + "a" * 2000, "2000"), ("https://[::1]/", "a loopback address"), ("http://169.254.169.254/", "link-local"),
        ("https://[oops/", "not a URL"),
    ],
)  # fmt: skip
def test_urls_that_are_refused(url, why):
    with pytest.raises(InvalidSpec) as caught:
        check_url(url, allow_private=False)
    assert why in caught.value.problems[0].message


def test_urls_that_are_taken():
    for url in ("https://example.org", "http://example.org:8080/a?b=c", "https://[2606:4700::1111]/x"):
        check_url(url, allow_private=False)
    check_url("http://127.0.0.1:1/x", allow_private=True)


def test_waits_double_up_to_an_hour_and_end_after_days():
    waits = [next_try(n, timedelta(0)) for n in range(1, 30)]
    assert waits[:3] == [timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=20)]
    assert waits[-1] == LONGEST_WAIT
    assert next_try(80, PATIENCE - timedelta(seconds=1)) == LONGEST_WAIT
    assert next_try(80, PATIENCE) is None


def test_a_signature_is_of_its_time_body_and_secret():
    one = sign("secret", 1700000000, b"{}")
    assert one == "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163", (
        "as the documented check says"
    )
    assert len({one, sign("other", 1700000000, b"{}"), sign("secret", 1700000001, b"{}"), sign("secret", 1700000000, b"[]")}) == 4
