"""Commands that stay open, on a network that breaks: each byte once, no trace of the breaks but a word, and Ctrl-C ends it."""

import signal
import subprocess
import threading

import pytest

from e2e.fleet import OSTLER, until
from e2e.proxy import Way


@pytest.fixture
def open_command():
    """A function that starts a command; what is left of it at the end is killed."""
    running = []

    def start(fleet, url, *words):
        env = fleet.env | {"OSTLER_URL": url}
        one = subprocess.Popen(
            [OSTLER, *words], env=env, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        running.append(one)
        return one

    yield start
    for one in running:
        one.kill()
        one.communicate()


class Reader(threading.Thread):
    """Collects what a command prints, so that a test can see how far it is."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.got = stream, b""
        self.start()

    def run(self):
        while block := self.stream.read(1 << 16):
            self.got += block


def test_a_followed_log_is_whole_through_cuts_and_a_restart(own_fleet, open_command, tmp_path):
    fleet = own_fleet().start()
    gates = [tmp_path / f"gate{number}" for number in range(4)]
    steps = "; ".join(
        f"seq {number * 5000 + 1} {(number + 1) * 5000}; while ! test -e {gate}; do sleep 0.05; done"
        for number, gate in enumerate(gates)
    )
    job = fleet.sh(f"{steps}; echo end; exit 6")
    way = Way(int(fleet.url.rpartition(":")[2]))
    try:
        follower = open_command(fleet, way.url, "job", "logs", "-f", job)
        out, err = Reader(follower.stdout), Reader(follower.stderr)
        for number, gate in enumerate(gates):
            last = b"\n%d\n" % ((number + 1) * 5000)
            until(lambda last=last: out.got.endswith(last), what=f"part {number}")
            if number == 1:
                killed = fleet.kill("coordinator")
                until(lambda old=killed: (one := fleet.processes().get("coordinator")) and one.pid != old, what="a coordinator")
            elif number == 2:
                way.freeze()
            way.cut()
            gate.touch()
            way.mend()
        assert follower.wait(60) == 0
        out.join()
        err.join()
        assert out.got == b"".join(b"%d\n" % number for number in range(1, 20001)) + b"end\n"
        assert b"Traceback" not in err.got
    finally:
        way.close()


def test_ctrl_c_ends_what_waits_also_while_nobody_answers(own_fleet, open_command):
    fleet = own_fleet().start()
    job = fleet.sh("echo begun; sleep 600")
    fleet.wait_state(job, "running")
    way = Way(int(fleet.url.rpartition(":")[2]))
    try:
        for words, cut in ((["logs", "-f"], False), (["logs", "-f"], True), (["wait"], False)):
            until(lambda: not way.open, what="the end of the last command's connections")
            command = open_command(fleet, way.url, "job", *words, job)
            if words[0] == "logs":
                assert command.stdout.readline() == b"begun\n"
            else:
                until(lambda: way.open, what="an open call")
            if cut:
                way.cut()
            command.send_signal(signal.SIGINT)
            out, err = command.communicate(timeout=60)
            assert (command.returncode, out) == (130, b""), err
            assert b"Traceback" not in err
            way.mend()
        assert fleet.job(job)["state"] == "running", "who looked on does not take the job along"
    finally:
        way.close()
