"""What the documentation says, held against the program: commands run, links followed, codes, commands and options looked up."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from e2e.fleet import OSTLER, Fleet
from ostler.cli.main import app
from ostler.model.failures import FailureCode

ROOT = Path(__file__).resolve().parent.parent.parent
SKIPPED = {"var", "node_modules", "shared"}
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part in SKIPPED or part.startswith(".") for part in page.relative_to(ROOT).parts)
)
RUN = [
    ROOT / "README.md",
    ROOT / "docs/tutorial/first-job.md",
    *(
        ROOT / f"docs/how-to/{name}.md"
        for name in (
            "allow-a-program",
            "add-a-machine",
            "when-a-job-fails",
            "one-command-many-inputs",
            "jobs-that-depend-on-each-other",
            "use-tls",
            "work-as-a-team",
            "set-quotas-and-retention",
            "let-a-job-reach-the-network",
            "give-a-job-a-secret",
            "back-up-and-restore",
            "describe-your-hosts",
        )
    ),
]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ELISION = "…"
# What differs from run to run, in the order in which it is recognised.
CHANGING = [
    (r"\bhttp://127\.0\.0\.1:\d+", "URL"),
    (r"\b(run|node)-[0-9a-f]{8,12}\b", "ID"),
    (r"\b(bwrap|process)\b", "LEVEL"),
    (r"\d\d:\d\d:\d\d\.\d+", "TIME"),
    (r"\b\d+(\.\d+)? ?(ms|[KMG]iB|B)(?= |$)", "N"),
    (r"\b(\d+(\.\d+)?[dhms])+(?= |$)", "N"),
    (r"\b\d+\.\d+\b", "N"),
    (r"\b\d+\+\d+\b", "SLOTS"),
    (r" +", " "),
]


def relative(page):
    """A page's name for test ids and messages."""
    return str(page.relative_to(ROOT))


def plain(line):
    """A line without what differs from run to run."""
    for pattern, word in CHANGING:
        line = re.sub(pattern, word, line)
    return line.strip()


def steps(page):
    """("file", name, text) and ("run", command, shown lines), in the order of the page."""
    for info, body in BLOCK.findall(page.read_text()):
        language, _, more = info.partition(" ")
        if more.startswith("file="):
            yield "file", more.removeprefix("file="), body
        elif language == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, *shown = part.splitlines()
                yield "run", command, [line for line in shown if line.strip()]


def appears(shown, answered):
    """Whether a shown line, with its elisions, is one of those that came."""
    pattern = ".*".join(re.escape(plain(part)) for part in shown.split(ELISION))
    return any(re.fullmatch(pattern, plain(line)) for line in answered)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """A set as `ostler up` makes it by itself, without what other tests add."""
    fleet = Fleet(tmp_path_factory.mktemp("docs") / "data")
    shutil.rmtree(fleet.data / "allowlist.d")
    fleet.env = {name: value for name, value in fleet.env.items() if not name.startswith("OSTLER_NODE__")}
    with fleet:
        yield fleet


@pytest.mark.parametrize("page", RUN, ids=relative)
def test_commands_do_what_the_page_shows(newcomer, tmp_path, page):
    env = newcomer.env | {"PATH": f"{Path(OSTLER).parent}:{os.environ['PATH']}"}
    code, last, ran = 0, None, 0
    for kind, name, content in steps(page):
        if kind == "file":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
            continue
        if name == "echo $?":
            assert content == [str(code)], f"{last} ended with {code}"
            code = 0
            continue
        assert code == 0, f"{last} ended with {code}, and the page does not say so"
        if name.split()[:2] == ["ostler", "up"]:
            continue  # it runs already
        done = subprocess.run(
            ["/bin/bash", "-c", name],
            cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=90, check=False,
        )  # fmt: skip
        code, last, ran = done.returncode, name, ran + 1
        for line in content:
            assert line == ELISION or appears(line, done.stdout.splitlines()), f"$ {name}\nlacks {line!r}:\n{done.stdout}"
    assert code == 0, f"{last} ended with {code}, and the page does not say so"
    assert ran


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            place = page.parent / file if file else page
            assert place.exists(), f"{relative(page)} links to {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def codes_in(text):
    """Failure codes that a text names."""
    return set(re.findall(r"\bE_[A-Z]+\b", text))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_codes_exist(page):
    assert codes_in(page.read_text()) <= {code.value for code in FailureCode}


def test_every_code_is_explained():
    for page in ("docs/how-to/when-a-job-fails.md", "docs/reference/errors.md"):
        assert codes_in((ROOT / page).read_text()) == {code.value for code in FailureCode}, page


def command_lines(text):
    """What follows `ostler` in code spans and blocks."""
    code = [body for _, body in BLOCK.findall(text)] + re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    for piece in code:
        for line in piece.splitlines():
            yield from re.findall(r"^(?:\$ )?(?:\S*/)?ostler (.+)$", line.split("  #")[0])


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_and_options_exist(page):
    top = typer.main.get_command(app)
    for line in command_lines(page.read_text()):
        command, path = top, "ostler"
        words = re.split(r"[ …]+", line.split(" -- ")[0].rstrip(","))
        while words and hasattr(command, "commands") and re.fullmatch(r"[a-z][a-z-]*", words[0]):
            assert words[0] in command.commands, f"{relative(page)} names {path} {words[0]}"
            path = f"{path} {words[0]}"
            command = command.commands[words.pop(0)]
        known = {option for param in command.params for option in param.opts} | {"-h", "--help"}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in known, f"{relative(page)}: {path} has no {word}"
