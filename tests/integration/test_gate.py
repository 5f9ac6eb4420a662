"""The network gate for real: programs in bwrap, a keeper, servers on this machine, and everything that a hostile job may try."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from integration.runner_rig import Rig, alive, text, until
from ostler.model.failures import FailureCode
from ostler.model.manifest import Policy, Runner
from ostler.model.sandbox import SandboxLevel
from ostler.node.config import CliRunnerConfig, NetworkConfig, PythonRunnerConfig
from ostler.node.gate import proxy
from ostler.node.runners.cli import CliRunner
from ostler.node.runners.gate import REFUSALS, Refusal, refusals, told
from ostler.node.runners.python import PythonRunner

C = FailureCode
PYTHON = "/usr/bin/python3"
GATE = Path(proxy.__file__).with_name("__main__.py")
DOOR = Path(proxy.__file__).with_name("door.py")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the gate is Linux's"),
    pytest.mark.skipif(not shutil.which("bwrap", path="/usr/bin:/bin"), reason="no bwrap (apt-get install bubblewrap)"),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"no {PYTHON} (apt-get install python3)"),
]

# What a job says to the gate, word for word; prints what comes back.
SAY = """
import socket, sys
def say(words, port=3128, most=1 << 20):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        s.sendall(words)
        found = b""
        while len(found) < most:
            got = s.recv(65536)
            if not got: break
            found += got
        return found
def status(words):
    try: return int(say(words, most=12).split()[1])
    except (OSError, IndexError): return 0
"""


class Web:
    """A real HTTP server that remembers what it was asked."""

    def __init__(self, host="127.0.0.1"):
        asked = self.asked = []

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.command, self.path, dict(self.headers)))
                size = int(self.path.removeprefix("/big/")) if self.path.startswith("/big/") else 5
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(b"hello" if size == 5 else b"x" * size)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked.append((self.command, self.path, dict(self.headers)))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"got %d" % len(body))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((host, 0), Page)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web():
    one = Web()
    yield one
    one.close()


class Gated:
    """One node whose owner grants some hosts, and jobs on it."""

    def __init__(self, folder, allow, **settings):
        allowlist = folder / "allowlist.d"
        allowlist.mkdir()
        entry = f"command: {{path: {PYTHON}, name: python}}\nargs: [['job.py']]\n"
        (allowlist / "python.yaml").write_text(entry)
        self.rig = Rig(
            folder,
            level=SandboxLevel.PROCESS,  # a list of hosts asks for bwrap by itself
            cli=CliRunnerConfig(allowlist_dir=allowlist),
            python=PythonRunnerConfig(enable=True, task_paths=(folder / "tasks",)),
            network=NetworkConfig(allow=tuple(allow)),
            **settings,
        )

    async def runner(self):
        runner = CliRunner(await self.rig.processes())
        runner.load()
        return runner

    async def start(self, script, network, **policy):
        """Start a Python script that may reach these hosts."""
        runner = await self.runner()
        asked = Policy(network=tuple(network), **policy)
        task = self.rig.task(by=runner, command="python", args=("job.py",), policy=asked, timeout_s=120.0)
        (Path(task.root) / "work/job.py").write_text(SAY + textwrap.dedent(script))
        failure = await runner.start(task)
        assert failure is None, failure
        return runner, task

    async def run(self, script, network, **policy):
        """The same, to its end."""
        runner, task = await self.start(script, network, **policy)
        return task, await runner.wait(task, lambda news: None)


@pytest.fixture
async def gated(tmp_path):
    made = []

    def make(*allow, **settings):
        folder = tmp_path / f"node-{len(made)}"
        folder.mkdir()
        made.append(Gated(folder, allow, **settings))
        if "bwrap" not in made[0].rig.abilities.levels:
            pytest.skip("no bwrap that works on this machine")
        return made[-1]

    yield make
    for one in made:
        await one.rig.close()


def gates(task):
    """The living gate processes of an attempt."""
    mark = str(Path(task.root) / REFUSALS)
    return [one for one in psutil.process_iter(["cmdline"]) if mark in " ".join(one.info["cmdline"] or []) and alive(one.pid)]


async def test_a_granted_host_is_reached_and_no_other(gated, web):
    node = gated(f"127.0.0.1:{web.port}", "127.0.0.1:1")
    script = f"""
        import os, urllib.request, urllib.error
        print(urllib.request.urlopen("http://127.0.0.1:{web.port}/a?b").read())
        try: urllib.request.urlopen("http://evil.example/")
        except urllib.error.HTTPError as e: print(e.code, e.read().decode().strip())
        print(status(b"CONNECT 127.0.0.1:1 HTTP/1.1\\r\\n\\r\\n"))
        try: socket.create_connection(("127.0.0.1", {web.port}))
        except OSError as e: print(e.strerror)
        try: socket.create_connection(("8.8.8.8", 53), timeout=5)
        except OSError as e: print(e.strerror)
        print(sorted(os.listdir("/proc/self/fd")), os.listdir({str(node.rig.config.workspace.root)!r}))
        sys.exit(7)
    """
    task, end = await node.run(script, [f"127.0.0.1:{web.port}"])
    said = text(task).splitlines()
    assert said[0] == "b'hello'"
    assert said[1].startswith("403 ostler: the network gate refused evil.example:80: policy.network of this job")
    assert said[2:5] == ["403", "Connection refused", "Network is unreachable"]
    assert said[5].startswith("['0', '1', '2', '3'] "), "no descriptor of the gate's"
    assert task.sandbox is SandboxLevel.BWRAP
    assert refusals(Path(task.root) / REFUSALS) == Counter(
        {Refusal(host="evil.example", port=80): 1, Refusal(host="127.0.0.1", port=1): 1}
    )
    assert end.failure is not None
    assert (end.failure.code, end.exit_code) == (C.EXIT, 7)
    assert "the network gate refused evil.example:80, 127.0.0.1:1" in end.failure.message
    assert "network gate refused evil.example:80" in text(task, "stderr")
    ((method, path, headers),) = web.asked
    assert (method, path, headers["Host"], headers["Connection"]) == ("GET", "/a?b", f"127.0.0.1:{web.port}", "close")
    assert gates(task) == []


async def test_a_tunnel_carries_bytes_both_ways_and_half_closes(gated):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def count():
            connection, _ = server.accept()
            with connection:
                total = 0
                while got := connection.recv(65536):
                    total += len(got)
                connection.sendall(b"%d bytes" % total)

        thread = threading.Thread(target=count)
        thread.start()
        script = f"""
            with socket.create_connection(("127.0.0.1", 3128)) as s:
                s.sendall(b"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\n\\r\\n" + b"early")
                print(s.recv(1000))
                for _ in range(200): s.sendall(b"x" * 50_000)
                s.shutdown(socket.SHUT_WR)
                print(s.recv(1000))
        """
        task, end = await gated(f"127.0.0.1:{port}").run(script, [f"127.0.0.1:{port}"])
        thread.join()
    assert end.failure is None
    assert text(task).splitlines() == ["b'HTTP/1.1 200 Connection established\\r\\n\\r\\n'", "b'10000005 bytes'"]


async def test_a_name_is_no_way_to_addresses_that_are_not_granted(gated, web):
    """`localhost` stands for a name whose owner lets it resolve to this machine, its network or a cloud's metadata."""
    url = f"http://localhost:{web.port}/"
    script = f'print(say(b"GET {url} HTTP/1.1\\r\\n\\r\\n").decode().splitlines()[-1])'
    task, end = await gated(f"localhost:{web.port}").run(script, [f"localhost:{web.port}"])
    assert end.failure is None
    assert "not public" in text(task)
    assert web.asked == []
    task, _ = await gated(f"localhost:{web.port}", f"127.0.0.0/8:{web.port}").run(script, [f"localhost:{web.port}"])
    assert text(task).endswith("hello\n")
    task, _ = await gated("*:*").run(script, ["*:*"])
    assert "not public" in text(task), "`*` is the public internet"
    assert len(web.asked) == 1


SPELLINGS = [
    "0x7f.1", "0x7f000001", "2130706433", "127.1", "0177.0.0.1", "127.0.0.1%00", "127%2e0%2e0%2e1", "[::ffff:127.0.0.1]", "[::1]",
    "localhost", "LOCALHOST.", "allowed.example@127.0.0.1", "127.0.0.1#allowed.example", "[::ffff:7f00:1]", "[::]", "0.0.0.0", "0",
    "169.254.169.254", "[64:ff9b::7f00:1]", "allowed.example\\t127.0.0.1", "127.0.0.1.", "\\xc5\\xbf",
]  # fmt: skip


async def test_no_spelling_of_this_machine_gets_through(gated, web):
    forms = [(f"CONNECT {host}:{web.port} HTTP/1.1", f"GET http://{host}:{web.port}/ HTTP/1.1") for host in SPELLINGS]
    script = f"""
        for tunnel, plain in {forms!r}:
            for words in (tunnel, plain):
                got = status(words.encode().decode("unicode_escape").encode("latin-1") + b"\\r\\nHost: allowed.example\\r\\n\\r\\n")
                assert got in (400, 403), (words, got)
    """
    task, end = await gated("allowed.example:*", "*:*").run(script, ["allowed.example:*", "*:*"])
    assert end.failure is None, text(task, "stderr")
    assert web.asked == []


async def test_other_spellings_of_a_granted_host_are_that_host(gated, web):
    script = f"""
        for host in (b"LocalHost", b"localhost.", b"127.0.0.1", b"127.0.0.1.", b"[::ffff:127.0.0.1]"):
            got = status(b"CONNECT %s:{web.port} HTTP/1.1\\r\\n\\r\\n" % host)
            assert got == 200, (host, got)
    """
    allow = [f"localhost:{web.port}", f"127.0.0.1:{web.port}"]
    task, end = await gated(*allow).run(script, allow)
    assert end.failure is None, text(task, "stderr")


async def test_what_is_written_between_the_lines_reaches_nobody(gated, web):
    script = f"""
        good = b"127.0.0.1:{web.port}"
        for words in (
            b"CONNECT " + good + b" HTTP/1.1\\nHost: evil\\r\\n\\r\\n",
            b"CONNECT " + good + b"\\r\\nX: y HTTP/1.1\\r\\n\\r\\n",
            b"GET http://" + good + b"/\\nX-Evil: 1 HTTP/1.1\\r\\n\\r\\n",
            b"GET http://" + good + b"/ HTTP/1.1\\r\\nX: y\\nX-Evil: 1\\r\\n\\r\\n",
            b"GET http://" + good + b"/ HTTP/1.1\\r\\nX: y\\rX-Evil: 1\\r\\n\\r\\n",
            b"GET http://" + good + b"/ HTTP/1.1\\r\\n X-Evil: 1\\r\\n\\r\\n",
            b"GET / HTTP/1.1\\r\\nHost: " + good + b"\\r\\n\\r\\n",
            b"\\x16\\x03\\x01" + b"\\0" * 50 + b"\\r\\n\\r\\n",
        ):
            assert status(words) == 400, words
        assert status(b"GET http://" + good + b"/ HTTP/1.1\\r\\nX: " + b"a" * 1_000_000 + b"\\r\\n\\r\\n") == 431
        assert say(b"POST http://" + good + b"/ HTTP/1.1\\r\\nHost: evil\\r\\nContent-Length: 4\\r\\n\\r\\nbody").endswith(b"got 4")
    """
    task, end = await gated(f"127.0.0.1:{web.port}").run(script, [f"127.0.0.1:{web.port}"])
    assert end.failure is None, text(task, "stderr")
    ((_, _, headers),) = web.asked
    assert headers["Host"] == f"127.0.0.1:{web.port}"


async def test_too_many_connections_and_slow_ones_harm_the_job_alone(gated, web):
    """A thousand at once, each of which says nothing: most are turned away, the gate stays small, and there is room again."""
    script = f"""
        import os, time, resource
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        for _ in range(1000):
            try: held.append(socket.create_connection(("127.0.0.1", 3128), timeout=20))
            except OSError: break
        for one in held: one.sendall(b"GET http://")
        print(len(held), flush=True)
        print(status(b"CONNECT 127.0.0.1:{web.port} HTTP/1.1\\r\\n\\r\\n"), flush=True)
        while not os.path.exists("go"): time.sleep(0.02)
        for one in held: one.close()
        while (got := status(b"CONNECT 127.0.0.1:{web.port} HTTP/1.1\\r\\n\\r\\n")) != 200: time.sleep(0.05)
        print(got)
    """
    node = gated(f"127.0.0.1:{web.port}")
    runner, task = await node.start(script, [f"127.0.0.1:{web.port}"], open_files=4096)
    await until(lambda: text(task).count("\n") >= 2, "two lines")
    (one,) = gates(task)
    assert one.memory_info().rss < 64 << 20
    assert one.num_fds() < 2 * proxy.MAX_CONNECTIONS + 64 + 1000, "those that were turned away are closed one by one"
    (Path(task.root) / "work/go").touch()
    end = await runner.wait(task, lambda news: None)
    assert end.failure is None, text(task, "stderr")
    assert text(task).splitlines() == ["1000", "503", "200"]


async def test_a_slow_request_is_given_up(gated):
    script = """
        import time
        with socket.create_connection(("127.0.0.1", 3128)) as s:
            began = time.monotonic()
            s.settimeout(0.5)
            for byte in b"GET http://allowed.example/ HTTP/1.1" + b"x" * 1000:
                s.send(bytes([byte]))
                try:
                    if got := s.recv(100): break
                except TimeoutError: pass
        print(got.split()[1])
    """
    task, end = await gated("allowed.example").run(script, ["allowed.example"])
    assert end.failure is None, text(task, "stderr")
    assert text(task) == "b'408'\n"


async def test_a_host_that_does_not_answer_is_told_apart_from_one_that_is_refused(gated):
    script = """
        print(say(b"CONNECT nowhere.invalid:443 HTTP/1.1\\r\\n\\r\\n").decode().splitlines()[-1])
        print(say(b"CONNECT 127.0.0.1:9 HTTP/1.1\\r\\n\\r\\n").decode().splitlines()[-1])
    """
    task, end = await gated("nowhere.invalid", "127.0.0.1:9").run(script, ["nowhere.invalid", "127.0.0.1:9"])
    assert end.failure is None, text(task, "stderr")
    said = text(task).splitlines()
    assert "nowhere.invalid cannot be resolved" in said[0]
    assert "127.0.0.1:9 cannot be reached" in said[1]
    assert not refusals(Path(task.root) / REFUSALS)


async def test_a_node_refuses_what_its_owner_does_not_grant(gated):
    node = gated("a.example", "10.0.0.0/8:22")
    runner = await node.runner()

    def refused(*network):
        manifest = node.rig.task(command="python", args=("job.py",), policy=Policy(network=network)).manifest
        return runner.refuse(manifest)

    assert refused("a.example", "10.1.2.3:22") is None
    failure = refused("a.example", "b.example:80")
    assert failure.code is C.DENY
    assert "network.allow of this node does not grant b.example:80" in failure.message


async def test_a_host_without_bwrap_has_no_gate(gated):
    node = gated("a.example")
    runner = await node.runner()
    runner._processes._levels -= {SandboxLevel.BWRAP}
    manifest = node.rig.task(command="python", args=("job.py",), policy=Policy(network=("a.example",))).manifest
    assert runner.refuse(manifest).code is C.SANDBOX


async def test_the_python_runner_has_the_same_gate(gated, web):
    node = gated(f"127.0.0.1:{web.port}")
    (node.rig.folder / "tasks").mkdir()
    (node.rig.folder / "tasks/fetch.py").write_text(
        "import urllib.request\n"
        "def run(url):\n"
        "    print(urllib.request.urlopen(url).read())\n"
        "    urllib.request.urlopen('http://evil.example/')\n"
    )
    runner = PythonRunner(await node.rig.processes())
    url = f"http://127.0.0.1:{web.port}/"
    task = node.rig.task(
        by=runner, runner=Runner.PYTHON, task="fetch", params={"url": url}, policy=Policy(network=(f"127.0.0.1:{web.port}",))
    )
    assert await runner.start(task) is None
    end = await runner.wait(task, lambda news: None)
    assert text(task) == "b'hello'\n"
    assert end.failure is not None
    assert end.failure.code is C.TASK
    assert "403" in end.failure.message
    assert end.failure.message.endswith("the network gate refused evil.example:80")
    await runner.close()


async def test_a_command_that_cannot_be_executed_is_told_as_ever(gated):
    node = gated("a.example")
    broken = node.rig.folder / "broken"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    allowlist = node.rig.folder / "allowlist.d/broken.yaml"
    allowlist.write_text(f"command: {{path: {broken}}}\n")
    runner = await node.runner()
    task = node.rig.task(by=runner, command="broken", policy=Policy(network=("a.example",)))
    if (failure := await runner.start(task)) is None:
        failure = (await runner.wait(task, lambda news: None)).failure
    assert failure.code in {C.START, C.DENY}, failure


@pytest.mark.parametrize("cgroup", ["auto", "none"])
@pytest.mark.parametrize("how", ["ends", "asked", "killed"])
async def test_the_gate_ends_with_its_job(gated, how, cgroup):
    node = gated("a.example", cgroup=cgroup)
    script = """
        import signal, time
        status(b"CONNECT b.example:443 HTTP/1.1\\r\\n\\r\\n")
        def bye(*_):
            print("bye", status(b"CONNECT b.example:443 HTTP/1.1\\r\\n\\r\\n"), flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, bye)
        print("up", flush=True)
        while not len(sys.argv) > 9: time.sleep(0.02) if HOW != "ends" else sys.exit(0)
    """
    runner, task = await node.start(f"HOW = {how!r}\n" + textwrap.dedent(script), ["a.example"])
    await until(lambda: "up" in text(task), "the start")
    found = gates(task)
    if how != "ends":
        assert len(found) == 1
        await runner.kill(task, reason="cancel", grace_s=20.0 if how == "asked" else 0.0)
    end = await runner.wait(task, lambda news: None)
    assert end.cancelled or how == "ends"
    assert ("bye 403" in text(task)) is (how == "asked"), "the gate serves while a job tidies up"
    await until(lambda: not gates(task), "the gate's end")
    (child,) = await runner._processes.keeper.list()
    assert how == "killed" or child.record.leftovers_killed == 0


async def test_the_gate_dies_with_the_keeper(gated):
    node = gated("a.example")
    _, task = await node.start("import time\nprint('up', flush=True)\ntime.sleep(100)", ["a.example"])
    await until(lambda: "up" in text(task), "the start")
    assert len(gates(task)) == 1
    node.rig.kill_keeper()
    await until(lambda: not gates(task), "the gate's end")


async def test_what_is_refused_without_end_is_counted_to_a_bound(gated):
    script = """
        for i in range(3000): status(b"CONNECT h%d.example:443 HTTP/1.1\\r\\n\\r\\n" % (i % 500))
        sys.exit(1)
    """
    task, end = await gated("a.example").run(script, ["a.example"])
    assert (Path(task.root) / REFUSALS).stat().st_size <= proxy.MAX_LOG_BYTES
    assert text(task, "stderr").count("network gate refused") == proxy.MAX_TOLD
    assert end.failure is not None
    assert len(end.failure.message) < 500
    assert "and 495 more" in end.failure.message


def test_a_torn_or_strange_file_of_refusals_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / REFUSALS).write_bytes(
        b'{"host":"a","port":1}\n[]\n\xff\n{"host":"a","port":1}\n{"host":"::1","port":2}\n{"host":"x","po'
    )
    found = refusals(tmp_path / REFUSALS)
    assert told(found) == "the network gate refused a:1 (2 times), [::1]:2"
    assert told(refusals(tmp_path / "nothing")) == ""


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("ip"), reason="needs root and `ip` for a network of its own")
def test_a_public_address_of_this_machine_is_refused_too(tmp_path):
    """In a network namespace of its own, where the machine has such an address: its services may trust whoever is local."""
    client = SAY + 'print(say(b"CONNECT 93.184.216.34:8080 HTTP/1.1\\r\\n\\r\\n").decode().splitlines()[-1])'
    server = "import http.server as h; h.HTTPServer(('93.184.216.34', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
    python = os.path.realpath(sys.executable)

    def said(*granted):
        order = json.dumps({"rules": ["*:*"], "granted": granted, "log": str(tmp_path / "log")})
        boxed = [
            *(python, "-I", "-S", str(GATE), order, "--", "/usr/bin/bwrap", "--unshare-net", "--unshare-pid", "--dev-bind", "/", "/"),
            *("--proc", "/proc", "--sync-fd", "6", "--", python, "-I", "-S", str(DOOR), "7", "3128", "--", PYTHON, "-c", client),
        ]  # fmt: skip
        script = (
            "ip link set lo up && ip addr add 93.184.216.34/32 dev lo\n"
            f'{PYTHON} -c "$1" & trap "kill $!" EXIT; shift\n'
            "until (exec 3<>/dev/tcp/93.184.216.34/8080) 2>/dev/null; do sleep 0.05; done\n"
            '"$@"'
        )
        done = subprocess.run(
            ["unshare", "-n", "bash", "-c", script, "bash", server, *boxed],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    assert "this node itself" in said()
    with (tmp_path / "log").open() as log:
        assert json.loads(log.readline()) == {"host": "93.184.216.34", "port": 8080}


async def test_a_transfer_goes_on_without_the_node(gated):
    """The daemon's side is gone for good (its connection to the keeper is cut); bytes go on, and the next one learns the end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        go = threading.Event()

        def drip():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"a" * 100_000)
                go.wait(60)
                connection.sendall(b"b" * 100_000)

        thread = threading.Thread(target=drip)
        thread.start()
        script = f"""
            with socket.create_connection(("127.0.0.1", 3128)) as s:
                s.sendall(b"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\n\\r\\n")
                total = 0 * len(s.recv(39, socket.MSG_WAITALL))
                while got := s.recv(65536):
                    total += len(got)
                    print(total, flush=True)
        """
        node = gated(f"127.0.0.1:{port}")
        runner, task = await node.start(script, [f"127.0.0.1:{port}"])
        await until(lambda: "100000" in text(task), "the first half")
        await runner.close()
        runner._processes.keeper.close()
        go.set()
        thread.join()
        runner = await node.runner()
        end = await runner.wait(task, lambda news: None)
    assert end.failure is None
    assert text(task).splitlines()[-1] == "200000"
