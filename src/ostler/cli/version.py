"""`ostler version`: what this program is and speaks, and what answers at the coordinator's address."""

from pathlib import Path
from typing import Any

from ostler.assembly.endpoint import Endpoint, look_for_endpoint
from ostler.cli import output
from ostler.cli.options import JsonOption

_PATIENCE_S = 3.0


def version(as_json: JsonOption = False) -> None:
    """Show the release, protocol and schema of this program, and the coordinator's where one is named and answers."""
    import ostler
    from ostler.model.errors import OstlerError
    from ostler.protocol import messages

    ours = {
        "version": ostler.__version__,
        "protocol": messages.PROTOCOL,
        "protocol_min": messages.PROTOCOL_MIN,
        "schema": newest_schema(Path(ostler.__file__).parent),
    }
    theirs: dict[str, Any] | None = None
    why = where = None
    try:
        if (endpoint := look_for_endpoint()) is not None:
            where = endpoint.url
            theirs = _ask(endpoint)
    except (OstlerError, OSError, ValueError, KeyError) as exc:
        why = str(exc) or type(exc).__name__
    if as_json:
        output.print_json({"client": ours, "coordinator": theirs, "coordinator_error": why})
        return
    output.say(f"ostler {_words(ours)}")
    if theirs is not None:
        output.say(output.clean(f"coordinator {_words(theirs)} at {where}"))
    elif why is not None:
        output.note(f"coordinator at {where}: {why}" if where else f"coordinator: {why}")


def _words(facts: dict[str, Any]) -> str:
    low, high = facts["protocol_min"], facts["protocol"]
    return f"{facts['version']} (protocol {high if low == high else f'{low} to {high}'}, schema {facts['schema']})"


def newest_schema(package: Path) -> int:
    """The newest schema that this release knows, by its migrations: their module loads the whole SQL library."""
    versions = (package / "coordinator" / "store" / "migrations" / "versions").glob("schema_[0-9]*.py")
    return max((int(one.stem.removeprefix("schema_")) for one in versions), default=0)


def _ask(endpoint: Endpoint) -> dict[str, Any]:
    """One plain GET. The typed client takes longer to load than all of this command, and needs no token here."""
    import http.client
    import json
    import urllib.parse

    address = urllib.parse.urlsplit(endpoint.url)
    connection: http.client.HTTPConnection
    if address.scheme == "https":
        import ssl

        context = ssl.create_default_context(cafile=str(endpoint.ca_file) if endpoint.ca_file else None)
        connection = http.client.HTTPSConnection(address.netloc, timeout=_PATIENCE_S, context=context)
    else:
        connection = http.client.HTTPConnection(address.netloc, timeout=_PATIENCE_S)
    try:
        connection.request("GET", address.path.removesuffix("/api/v1") + "/api/v1/version")
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"answered {answer.status}")
        found = json.loads(answer.read(64 * 1024))
    except http.client.HTTPException as exc:
        raise ValueError(f"does not speak HTTP: {exc!r}") from exc
    finally:
        connection.close()
    return {key: found[key] for key in ("version", "protocol", "protocol_min", "schema")}
