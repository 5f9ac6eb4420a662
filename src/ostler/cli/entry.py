"""The `ostler` program's first step: Ctrl-C while its parts are loaded ends it without a word, as it does later."""

import sys


def main() -> int:
    """Load the command line, and run it; a node's daemon is started without it, which would take longer to load than the daemon waits
    for anything else."""
    try:
        match sys.argv[1:]:
            case ["node", "--config", file] if _is_file(file):
                from ostler.assembly import ahead

                ahead.become_node(file, "ostler.cli.checked")
            case ["node", "--await-keeper", "--config", file] if _is_file(file):  # a unit's: what it takes counts, not how long
                import gc

                gc.disable()  # until it has started: nothing that is loaded becomes garbage
                from ostler.cli import unit

                return unit.start(file)
        sys.modules["httpx._main"] = None  # type: ignore[assignment]  # its own command line: 50 ms of imports that nobody calls
        from ostler.cli.main import main as program
    except KeyboardInterrupt:
        return 130
    return program()


def _is_file(word: str) -> bool:
    return bool(word) and not word.startswith("-")
