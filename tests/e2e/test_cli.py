"""The installed command line against a real coordinator, without a node: jobs wait, so that each moment can be looked at."""

import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import threading

import pytest

from e2e.fleet import OSTLER, Fleet, until

PENDING = {"command": "sleep", "args": ["100"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A coordinator that no node has joined."""
    with Fleet(tmp_path_factory.mktemp("alone") / "data", args=("--no-node",)) as running:
        yield running


def job_of(text):
    return re.search(r"run-[0-9a-f]{12}", text)[0]


def test_version_names_both(alone):
    done = alone.cli("version")
    assert re.fullmatch(
        r"ostler \S+ \(protocol 1, schema \d+\)\ncoordinator \S+ \(protocol 1, schema \d+\) at http://\S+\n", done.stdout
    )
    said = json.loads(alone.cli("version", "--json").stdout)
    assert said["client"] == said["coordinator"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["bogus"], 2, "No such command"),
        (["job", "list", "--limit", "0"], 2, "--limit"),
        (["run", "--timeout", "soon", "--", "true"], 2, "is not a duration"),
        (["run", "--label", "x", "--", "true"], 2, "is not KEY=VALUE"),
        (["token", "create"], 2, "--join"),
        (["node"], 2, "--config FILE"),
        (["job", "show", "nope"], 3, "error: there is no job nope"),
        (["job", "logs", "-f", "nope"], 3, "no job nope"),
        (["job", "wait", "nope"], 3, "no job nope"),
        (["node", "show", "nope"], 3, "nope"),
        (["run", "--out", "../x", "--", "true"], 3, "--out: '../x' leaves the workspace"),
        (["run", "--in", "/none/such", "--", "true"], 3, "--in: /none/such does not exist"),
        (["job", "submit", "/none/such"], 3, "cannot be read: No such file"),
        (["job", "show", "\udcff"], 3, "is not valid Unicode"),
        (["job", "list", "--label", "a=\udcff"], 3, "is not valid Unicode"),
        (["run", "--", "echo", "\udcff"], 3, "args[0]: '\\udcff' is not valid Unicode"),
        (["run", "--out", "\udcff", "--", "true"], 3, "--out: '\\udcff' is not valid Unicode"),
        (["run", "--timeout", "0", "--", "true"], 3, "--timeout: must be more than 0"),
        (["run", "--gpu", "9" * 20, "--", "true"], 3, "--gpu: must be from 0 to 2147483648"),
        (["run", "--in", "/proc/cpuinfo", "--", "true"], 3, "/proc/cpuinfo changed while it was sent"),
    ],
)
def test_misuse_is_told_without_a_traceback(alone, words, code, said):
    done = alone.cli(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("coordinator: 7\n", "coordinator")])
def test_a_daemon_that_cannot_start_says_the_same_on_the_short_way_and_on_the_long(tmp_path, content, said):
    """`node --config FILE` is looked at before the command line is loaded, and so is a unit's `node --await-keeper --config FILE`."""
    file = tmp_path / "node.yaml"
    if content is not None:
        file.write_text(content)
    short, unit, long = (
        subprocess.run([OSTLER, "node", *words], check=False, capture_output=True, text=True, timeout=60)
        for words in (["--config", file], ["--await-keeper", "--config", file], ["--config", file, "--await-keeper"])
    )
    assert (short.returncode, short.stdout, short.stderr) == (long.returncode, long.stdout, long.stderr)
    assert (unit.returncode, unit.stdout, unit.stderr) == (long.returncode, long.stdout, long.stderr)
    assert (short.returncode, said in short.stderr, "Traceback" in short.stderr) == (3, True, False)


def test_nobody_at_home_is_4(alone):
    for words in (["job", "list"], ["run", "--", "true"], ["job", "wait", "x"], ["job", "logs", "-f", "x"]):
        done = subprocess.run(
            [OSTLER, *words], env={**alone.env, "OSTLER_URL": "http://127.0.0.1:1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 4, done.stderr
        assert "http://127.0.0.1:1" in done.stderr


def test_something_else_at_the_address(alone, tmp_path):
    """A web server that answers everything with a page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**alone.env, "OSTLER_URL": f"http://127.0.0.1:{server.server_port}", "OSTLER_TOKEN": "x"}
        found = subprocess.run([OSTLER, "doctor"], env=env, capture_output=True, text=True, timeout=60, check=False)
        listed = subprocess.run([OSTLER, "job", "list"], env=env, capture_output=True, text=True, timeout=60, check=False)
        server.shutdown()
    assert re.search(r"fail  coordinator +what answers at \S+ is no coordinator", found.stdout)
    assert "token " not in found.stdout.partition("no coordinator")[2]
    assert (found.returncode, listed.returncode) == (1, 4)


def test_a_wrong_token_is_3(alone):
    done = subprocess.run(
        [OSTLER, "job", "list"], env={**alone.env, "OSTLER_TOKEN": "ostler_api_x_y"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "error:" in done.stderr


def test_the_profile_of_up_is_found(alone):
    env = {key: value for key, value in alone.env.items() if key not in {"OSTLER_URL", "OSTLER_TOKEN"}}
    for more in ({}, {"OSTLER_PROFILE": str(alone.data / "profile.yaml"), "XDG_CONFIG_HOME": "/nonexistent"}):
        assert subprocess.run([OSTLER, "job", "list"], env={**env, **more}, capture_output=True, check=False).returncode == 0
    for path in (alone.data / "admin.token", alone.data / "profile.yaml", alone.data / "config/ostler/profile.yaml"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_token_stands_in_no_command_line_and_no_environment(alone):
    for one in alone.processes().values():
        assert alone.token not in " ".join(one.cmdline())
        assert alone.token not in one.environ().values()


def test_a_second_up_says_where_the_first_is(alone):
    done = alone.cli("up", "--data", alone.data, "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert f"runs already on {alone.data} at {alone.url} (process {alone.process.pid})" in done.stderr


def test_submit_list_show_hold_release_cancel_retry(alone, tmp_path):
    manifests = tmp_path / "jobs.yaml"
    manifests.write_text("command: sleep\nargs: ['100']\nlabels: {batch: one}\n---\ncommand: 'true'\nlabels: {batch: one}\n")
    done = alone.cli("job", "submit", manifests)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    listed = json.loads(alone.cli("job", "list", "--label", "batch=one", "--json").stdout)
    assert [one["job_id"] for one in listed["items"]] == [second, first]
    assert alone.cli("job", "list", "--label", "batch=one", "--limit", 1).stderr == "these are the newest 1; --limit shows more\n"
    assert "no node has joined" in alone.cli("job", "explain", first).stdout
    assert alone.cli("job", "hold", first, second).stdout == f"{first} is held\n{second} is held\n"
    assert "held " in alone.cli("job", "list").stdout
    assert alone.cli("job", "release", first, second).returncode == 0
    page = alone.cli("job", "show", first).stdout
    assert all(word in page for word in ("sleep 100", "queued", "batch=one", "hold", "release", "submit")), page
    done = alone.cli("job", "cancel", "--reason", "enough", first, "nope", second)
    assert done.returncode == 3  # of the one that is none; the others were cancelled all the same
    assert "no job nope" in done.stderr
    assert json.loads(alone.cli("job", "show", first, "--json").stdout)["state"] == "cancelled"
    assert alone.cli("job", "wait", first).returncode == 125
    again = re.search(r"anew as (\S+)", alone.cli("job", "retry", first).stdout)[1]
    assert json.loads(alone.cli("job", "show", again, "--json").stdout)["retry_of"] == first
    assert alone.cli("job", "wait", "--timeout", "50ms", again).returncode == 124
    assert alone.cli("job", "wait", "--timeout", "0", first).returncode == 125  # it is over: no time is needed to see that
    assert alone.cli("job", "artifacts", again).stderr == "no artifacts\n"
    assert alone.cli("job", "logs", again).stdout == ""
    assert alone.cli("job", "debug", again).returncode == 3
    assert alone.cli("job", "cancel", again).returncode == 0


def test_lists_longer_than_a_page_are_read_to_their_end(alone):
    lines = "".join(json.dumps({**PENDING, "labels": {"page": "many"}}) + "\n" for _ in range(620))
    assert len(alone.cli("job", "submit", "-", stdin=lines).stdout.split()) == 620
    ids = json.loads(alone.cli("job", "list", "--label", "page=many", "--limit", 1000, "--json").stdout)
    assert len({one["job_id"] for one in ids["items"]}) == 620
    assert ids["more"] is False
    assert alone.cli("job", "cancel", *(one["job_id"] for one in ids["items"]), timeout=300).returncode == 0


def test_a_mistake_anywhere_sends_nothing(alone):
    text = "command: sleep\nlabels: {never: sent}\n---\ncommand: sleep\nrequirements: {gpuz: 1}\n"
    done = alone.cli("job", "submit", "-", stdin=text)
    assert done.returncode == 3
    assert "<stdin>:5: requirements.gpuz: is not a known key; did you mean" in done.stderr
    assert json.loads(alone.cli("job", "list", "--label", "never=sent", "--json").stdout)["items"] == []


def test_tokens(alone):
    token = alone.cli("token", "create", "--join", "--uses", 3, "--expires", "2h", "--note", "rack 4").stdout.strip()
    assert token.startswith("ostler_join_")
    listed = json.loads(alone.cli("token", "list", "--json").stdout)["items"]
    (mine,) = [one for one in listed if one["note"] == "rack 4"]
    assert (mine["uses_left"], mine["token"]) == (3, None)
    assert token not in alone.cli("token", "list").stdout
    assert alone.cli("token", "revoke", mine["token_id"]).stdout == f"{mine['token_id']} is revoked\n"
    assert re.search(rf"{mine['token_id']} .*revoked", alone.cli("token", "list").stdout)


def test_doctor_finds_this_machine_and_the_coordinator(alone):
    done = alone.cli("doctor", "--json")
    found = {one["name"]: one["state"] for one in json.loads(done.stdout)}
    assert {"python": "ok", "coordinator": "ok", "clock": "ok", "token": "ok", "secrets": "ok"}.items() <= found.items()
    assert done.returncode == (1 if "fail" in found.values() else 0)
    (alone.data / "config/ostler/profile.yaml").chmod(0o644)
    try:
        done = alone.cli("doctor")
        assert done.returncode == 1
        assert "chmod 600" in done.stdout
    finally:
        (alone.data / "config/ostler/profile.yaml").chmod(0o600)


# --- run and its signals -----------------------------------------------------------------------------------------------------


def running(fleet, *words):
    return subprocess.Popen(
        [OSTLER, "run", *words],
        env=fleet.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_without_a_terminal_a_signal_cancels(alone, number, code):
    process = running(alone, "--label", f"signal={code}", "--", "sleep", "100")
    listed = ("job", "list", "--label", f"signal={code}", "--json")
    (job,) = until(lambda: json.loads(alone.cli(*listed).stdout)["items"], what="the job in the list")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert f"cancelling {job['job_id']} ({number.name})" in err
    assert alone.job(job["job_id"])["state"] == "cancelled"


def test_a_job_that_waits_says_why_once(alone):
    process = running(alone, "--", "sleep", "100")
    said = process.stderr.readline()
    assert re.fullmatch(r"run-\w+ is queued: no node has joined yet.*\n", said)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "is queued" not in err


class Terminal:
    """`ostler run` on a terminal of its own."""

    def __init__(self, fleet, *words):
        self.said = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execve(OSTLER, [OSTLER, "run", *words], fleet.env)

    def expect(self, text, timeout=30):
        def seen():
            if select.select([self.terminal], [], [], 0.05)[0]:
                self.said += os.read(self.terminal, 4096).decode()
            return text in self.said

        until(seen, timeout=timeout, what=f"{text!r} on the terminal, which says {self.said!r}")
        before, _, self.said = self.said.partition(text)
        return before + text

    def type(self, keys):
        os.write(self.terminal, keys)

    def end(self):
        """The exit code; what is said until then is kept."""
        try:
            while piece := os.read(self.terminal, 4096):
                self.said += piece.decode()
        except OSError:
            pass  # the other side is closed
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize(
    ("answers", "state", "farewell"),
    [
        ([b"\x03", b"y\n"], "cancelled", "cancelling"),
        ([b"\x03", b"\x03"], "queued", "come back with"),
        ([b"\x03", b"n\n", b"\x03"], "queued", "come back with"),
        ([b"\x03", b"\n", b"\x03"], "queued", "come back with"),
    ],
)
def test_ctrl_c_asks_once_and_then_detaches(alone, answers, state, farewell):
    terminal = Terminal(alone, "--", "sleep", "100")
    job = job_of(terminal.expect("\r\n"))
    terminal.type(answers[0])
    terminal.expect("leaves it running) ")
    terminal.type(answers[1])
    if len(answers) > 2:
        terminal.expect("\r\n")
        terminal.type(answers[2])
    assert terminal.end() == 130
    assert farewell in terminal.said
    assert alone.job(job)["state"] == state
    if state == "queued":
        assert f"ostler job logs -f {job}" in terminal.said
        assert f"ostler job wait {job}" in terminal.said
        alone.cli("job", "cancel", job)


def test_run_goes_through_a_restart_of_the_coordinator(own_fleet):
    fleet = own_fleet(args=("--no-node",)).start()
    process = running(fleet, "--label", "a=b", "--", "sleep", "100")
    (job,) = until(lambda: json.loads(fleet.cli("job", "list", "--label", "a=b", "--json").stdout)["items"], what="the job")
    killed = fleet.kill("coordinator")
    until(lambda: (one := fleet.processes().get("coordinator")) and one.pid != killed, what="a new coordinator")
    assert fleet.job(job["job_id"])["state"] == "queued"  # at the same address
    assert process.poll() is None
    assert fleet.cli("job", "cancel", job["job_id"]).returncode == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 125
    assert f"{job['job_id']} is cancelled" in err
