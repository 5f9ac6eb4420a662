"""The `ostler` program's first step: Ctrl-C while its parts are loaded ends it without a word, as it does later."""

import sys


def main() -> int:
    """Load the command line, and run it; a node's daemon is started without it, which would take longer to load than the daemon waits
    for anything else."""
    try:
        if (file := _daemons_file(sys.argv[1:])) is not None:
            from ostler.assembly import ahead

            ahead.become_node(file, "ostler.cli.checked")
        sys.modules["httpx._main"] = None  # type: ignore[assignment]  # its own command line: 50 ms of imports that nobody calls
        from ostler.cli.main import main as program
    except KeyboardInterrupt:
        return 130
    return program()


def _daemons_file(words: list[str]) -> str | None:
    """FILE where the words are `node --config FILE` and nothing else."""
    match words:
        case ["node", "--config", file] if file and not file.startswith("-"):
            return file
    return None
