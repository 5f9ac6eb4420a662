"""`ostler doctor`: what this host and this user have, what is missing, and the command that mends it."""

from ostler.cli import exits, output
from ostler.cli.options import JsonOption


def doctor(as_json: JsonOption = False) -> None:
    """Check this host and the way to the coordinator; each finding with the command that mends it. Exit code 1 on a failure."""
    from ostler.cli.checks import FAIL, OK, findings

    found = findings()
    if as_json:
        output.print_json(found)
    else:
        width = max(len(finding.name) for finding in found)
        for one in found:
            output.say(f"{output.paint(one.state.ljust(4), one.state)}  {one.name.ljust(width)}  {output.clean(one.text)}")
            if one.mend and one.state != OK:
                output.say(f"{'':4}  {'':{width}}  -> {output.clean(one.mend)}")
    if any(finding.state == FAIL for finding in found):
        raise exits.Exit(exits.FAILED)
