"""The `ostler` program's first step: Ctrl-C while its parts are loaded ends it without a word, as it does later."""


def main() -> int:
    """Load the command line, and run it."""
    try:
        from ostler.cli.main import main as program
    except KeyboardInterrupt:
        return 130
    return program()
