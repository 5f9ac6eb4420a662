"""Every command and every option says what it means: the reference page is made of these texts."""

import typer.main

from ostler.cli.main import app

NAMES = {
    "up", "run", "coordinator", "doctor", "version",
    "job submit", "job list", "job show", "job logs", "job wait", "job cancel", "job retry", "job explain", "job artifacts",
    "job debug", "job hold", "job release",
    "node", "node probe", "node list", "node show", "node drain", "node resume",
    "token create", "token list", "token revoke",
    "allowlist test", "config check", "config show", "config schema",
}  # fmt: skip
RAW = {"up", "run", "coordinator", "node", "job logs", "config schema"}  # a daemon, bytes as they are, or JSON anyway


def commands(command, words=()):
    inner = getattr(command, "commands", None)
    if inner is None or getattr(command, "invoke_without_command", False):
        yield " ".join(words), command
    for name, one in (inner or {}).items():
        yield from commands(one, (*words, name))


FOUND = dict(commands(typer.main.get_command(app)))


def test_the_names_are_fixed():
    assert set(FOUND) == NAMES


def test_every_command_and_option_is_explained():
    for words, command in FOUND.items():
        assert command.help, words
        for param in command.params:
            if param.name not in {"help", "ctx", "install_completion", "show_completion"}:
                assert getattr(param, "help", None), f"{words} {param.name}"


def test_what_prints_a_value_prints_json_too():
    for words, command in FOUND.items():
        options = {text for param in command.params for text in param.opts}
        if words not in RAW:
            assert "--json" in options, words
