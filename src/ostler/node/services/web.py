"""GET from a service on this machine: one answer, with caps on its size and time."""

import asyncio
import contextlib

import httptools

from ostler.node.services.rules import parse_url

MAX_BYTES = 1 << 20
BLOCK = 1 << 16


class WebTrouble(Exception):
    """Why there is no answer, as the end of a sentence about the URL."""


class _Answer:
    """What httptools tells."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.done = False

    def on_body(self, block: bytes) -> None:
        self.body += block

    def on_message_complete(self) -> None:
        self.done = True


async def get(url: str, *, timeout_s: float, most: int = MAX_BYTES) -> tuple[int, bytes]:
    """Status and body. Raises WebTrouble."""
    place = parse_url(url)
    if place is None:
        raise WebTrouble("is no http:// URL of this machine")
    host, port, target = place
    try:
        async with asyncio.timeout(timeout_s):
            return await _get(host, port, target, most)
    except TimeoutError:
        raise WebTrouble(f"did not answer within {timeout_s:g} s") from None
    except OSError as exc:
        raise WebTrouble(f"cannot be reached: {exc.strerror or exc}") from None
    except httptools.HttpParserError:
        raise WebTrouble("did not answer in HTTP") from None


async def _get(host: str, port: int, target: str, most: int) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        named = f"[{host}]" if ":" in host else host
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {named}:{port}\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode())
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        while not answer.done:
            block = await reader.read(BLOCK)
            if not block:
                break  # without a length, the end of the connection is the end of the body
            parser.feed_data(block)
            if len(answer.body) > most:
                raise WebTrouble(f"answered with more than {most >> 10} KiB")
        status = parser.get_status_code()
        if not status:
            raise WebTrouble("did not answer in HTTP")
        return status, bytes(answer.body)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
