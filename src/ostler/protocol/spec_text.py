"""The text of a manifest: what jobs that differ in nothing but their ids have in common."""

import re

_ID_FIRST = re.compile(rb'\{"job_id": ?"([A-Za-z0-9][A-Za-z0-9._-]{0,127})", ?(?=")')


def without_id(text: bytes) -> tuple[str | None, bytes]:
    """The id that stands in front of a manifest's text, as clients write it, and the text without it: jobs come in thousands that differ
    in nothing else. None, and the text as it is, where that cannot be told at a glance."""
    found = _ID_FIRST.match(text)
    if found is None:
        return None, text
    rest = text[found.end() :]
    if b"job_id" in rest or b"\\" in rest:  # there may be a second one, however it is spelled
        return None, text
    return found[1].decode(), b"{" + rest
