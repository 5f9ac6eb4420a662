"""Every command and every option says what it means: the reference page is made of these texts."""

import typer.main
from typer.testing import CliRunner

from ostler.cli.main import app

NAMES = {
    "up", "run", "coordinator", "doctor", "version",
    "job submit", "job list", "job show", "job logs", "job wait", "job cancel", "job retry", "job explain", "job artifacts",
    "job debug", "job hold", "job release",
    "node", "node probe", "node list", "node show", "node drain", "node resume", "node cordon", "node uncordon",
    "node pool", "node retire", "node enrol", "node reach", "node keeper", "node install", "node uninstall", "node rotate-key", "top",
    "fleet hosts", "fleet install", "fleet uninstall", "fleet status", "fleet update", "fleet run", "fleet logs",
    "fleet trust", "fleet lock status", "fleet lock break", "fleet firewall", "fleet prune", "fleet rotate-credentials",
    "token create", "token list", "token revoke",
    "secret set", "secret list", "secret rm",
    "events", "retention",
    "quota", "quota list", "quota show", "quota set", "quota rm",
    "ca init", "ca issue", "ca renew", "ca show",
    "db status", "db upgrade", "db copy",
    "backup create", "backup list", "backup verify", "backup prune", "restore",
    "audit list", "audit verify",
    "release build", "release list", "release show", "release verify", "release prune", "release push",
    "rollout start", "rollout list", "rollout show", "rollout pause", "rollout resume", "rollout abort",
    "service start", "service stop", "service restart", "service status", "service list",
    "release key new", "release key list", "release key retire",
    "webhook add", "webhook list", "webhook rm", "webhook test", "webhook enable",
    "sim nodes", "allowlist test", "config check", "config show", "config schema",
}  # fmt: skip
RAW = {
    "up",
    "run",
    "coordinator",
    "node",
    "node keeper",
    "fleet run",
    "fleet logs",
    "fleet trust",
    "fleet lock break",
    "job logs",
    "config schema",
}  # a daemon, bytes as they are, or JSON anyway


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


def test_paragraphs_fill_the_terminal(monkeypatch):
    """Not broken where the source's lines end."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = CliRunner().invoke(app, ["up", "--help"]).output
    lines = [line.strip() for line in shown.partition("Options")[0].splitlines()]
    paragraph = lines[next(i for i, line in enumerate(lines) if line.startswith("Prints")) :]
    ends = [len(line) for line in paragraph[: paragraph.index("")]]
    assert min(ends[:-1]) > 60, paragraph
