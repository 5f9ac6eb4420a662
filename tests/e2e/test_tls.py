"""A fleet that speaks TLS with both ends' certificates, from `ostler ca` to the job, and the refusals that keep others out."""

import json
import os
import ssl
import subprocess
import sys

import httpx
import pytest
import yaml

from e2e.fleet import OSTLER, Fleet, until
from ostler.assembly.keeper_stop import shut_down


def ostler(*args, env=None):
    """The installed command line; its answer must be good."""
    done = subprocess.run([OSTLER, *map(str, args)], capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done


class SecureFleet(Fleet):
    """A set with its own authority, whose coordinator asks for client certificates."""

    def __init__(self, data, **more):
        super().__init__(data, **more)
        self.ca = data / "ca"
        for words in (
            ("init",), ("issue", "coordinator", "--san", "127.0.0.1"), ("issue", "this-node", "--client"), ("issue", "me", "--client"),
        ):  # fmt: skip
            ostler("ca", *words, "--dir", self.ca)
        tls = {"cert": f"{self.ca}/coordinator.pem", "key": f"{self.ca}/coordinator.key", "client_ca": f"{self.ca}/ca.pem"}
        (data / "coordinator.yaml").write_text(yaml.safe_dump({"tls": tls}))
        self.verify = ssl.create_default_context(cafile=self.ca / "ca.pem")
        self.verify.load_cert_chain(self.ca / "me.pem", self.ca / "me.key")
        self.env |= {
            "OSTLER_NODE__COORDINATOR__CLIENT_CERT": f"{self.ca}/this-node.pem",
            "OSTLER_NODE__COORDINATOR__CLIENT_KEY": f"{self.ca}/this-node.key",
        }
        self.mine = {
            "OSTLER_CA_FILE": f"{self.ca}/ca.pem",
            "OSTLER_CLIENT_CERT": f"{self.ca}/me.pem",
            "OSTLER_CLIENT_KEY": f"{self.ca}/me.key",
        }

    def shown(self):
        """The certificate that a new connection is shown."""
        with httpx.Client(verify=self.verify, trust_env=False) as http, http.stream("GET", f"{self.url}/readyz") as answer:
            server = answer.extensions["network_stream"].get_extra_info("ssl_object")
            return ssl.DER_cert_to_PEM_cert(server.getpeercert(True))


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    with SecureFleet(tmp_path_factory.mktemp("tls") / "data") as running:
        yield running


def run(fleet, *words, **env):
    """A command with this environment beside the fleet's; a value of None takes a variable away."""
    given = {name: value for name, value in (fleet.env | fleet.mine | env).items() if value is not None}
    return subprocess.run(
        [OSTLER, *map(str, words)], capture_output=True, text=True, env=given, timeout=90, stdin=subprocess.DEVNULL, check=False
    )


def test_a_job_through_tls(secure):
    assert secure.url.startswith("https://127.0.0.1:")
    done = run(secure, "run", "--", "echo", "hi")
    assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr
    # The profile that `ostler up` wrote names all that is needed.
    bare = dict.fromkeys(("OSTLER_URL", "OSTLER_TOKEN", *secure.mine))
    done = run(secure, "run", "--", "echo", "hi", OSTLER_PROFILE=f"{secure.data}/profile.yaml", **bare)
    assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr
    program = "import ostler\nwith ostler.Client() as c: print(c.submit(['echo', 'hi']).result().state.value)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=secure.env | secure.mine, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert {one["name"]: one["state"] for one in json.loads(run(secure, "doctor", "--json").stdout)}["token"] == "ok"


def test_whoever_does_not_fit_is_refused_in_one_line(secure, tmp_path):
    ostler("ca", "init", "--dir", tmp_path / "other")
    ostler("ca", "issue", "me", "--client", "--dir", tmp_path / "other")
    refusals = [
        ({"OSTLER_CA_FILE": f"{tmp_path}/other/ca.pem"}, "is not from the authority in"),
        ({"OSTLER_CA_FILE": None}, "is from an authority that this machine does not know"),
        ({"OSTLER_URL": secure.url.replace("127.0.0.1", "localhost")}, "is not for localhost"),
        ({"OSTLER_URL": secure.url.replace("https", "http")}, "https://"),
        ({"OSTLER_CLIENT_CERT": None, "OSTLER_CLIENT_KEY": None}, "OSTLER_CLIENT_CERT"),
        (
            {"OSTLER_CLIENT_CERT": f"{tmp_path}/other/me.pem", "OSTLER_CLIENT_KEY": f"{tmp_path}/other/me.key"},
            "tls.client_ca",
        ),
    ]
    for env, said in refusals:
        done = run(secure, "job", "list", **env)
        assert done.returncode == 4, (env, done.stderr)
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2, done.stderr
        assert secure.token not in done.stderr
    for env, said in (
        ({"OSTLER_CLIENT_KEY": None}, "needs its key"),
        ({"OSTLER_CA_FILE": str(tmp_path / "none.pem")}, "none.pem cannot be used"),
        ({"OSTLER_CLIENT_KEY": f"{secure.ca}/coordinator.key"}, "cannot be used"),
    ):
        done = run(secure, "job", "list", **env)
        assert (done.returncode, said in done.stderr) == (3, True), done.stderr


def node_yaml(secure, place, **coordinator):
    """A second node's configuration."""
    place.mkdir()
    config = {
        "node_id": "second",
        "coordinator": {
            "base_url": f"{secure.url}/api/v1", "auth_token": "env:JOIN_TOKEN", "ca_file": f"{secure.ca}/ca.pem",
            "client_cert": f"{secure.ca}/this-node.pem", "client_key": f"{secure.ca}/this-node.key", **coordinator,
        },
        "heartbeat": {"backoff": {"min_s": 0.2, "max_s": 1}},
        "workspace": {"root": f"{place}/jobs"}, "sandbox": {"level": "process"}, "runners": {"python": {"enable": False}},
        "health": {"listen": "off"}, "logging": {"path": f"{place}/node.jsonl"},
    }  # fmt: skip
    (place / "node.yaml").write_text(yaml.safe_dump(config))
    return place / "node.yaml"


@pytest.mark.parametrize(
    ("wrong", "said", "mend"),
    [
        ("ca", "is not from the authority in", "ostler ca show"),
        ("name", "is not for localhost", "--san localhost"),
        ("plain", "the connection was closed before an answer came", "its URL begins with https://"),
        ("client", "the connection was closed before an answer came", "tls.client_ca"),
        ("verify", "tls_not_verified", "pin its CA by ca_file"),
    ],
)
def test_a_nodes_log_says_what_is_wrong(secure, tmp_path, wrong, said, mend):
    ostler("ca", "init", "--dir", tmp_path / "other")
    ostler("ca", "issue", "me", "--client", "--dir", tmp_path / "other")
    changes = {
        "ca": {"ca_file": f"{tmp_path}/other/ca.pem"},
        "name": {"base_url": f"{secure.url}/api/v1".replace("127.0.0.1", "localhost")},
        "plain": {"base_url": f"{secure.url}/api/v1".replace("https", "http")},
        "client": {"client_cert": f"{tmp_path}/other/me.pem", "client_key": f"{tmp_path}/other/me.key"},
        "verify": {"ca_file": None, "tls_verify": False},
    }
    file = node_yaml(secure, tmp_path / "node", **changes[wrong])
    token = json.loads(run(secure, "token", "create", "--join", "--json").stdout)["token"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("OSTLER_")} | {"JOIN_TOKEN": token}
    log = tmp_path / "node/node.jsonl"
    with subprocess.Popen(
        [OSTLER, "node", "--config", file], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as daemon:
        try:
            until(lambda: log.exists() and said in log.read_text(), what=f"{said!r} in the node's log")
            assert any(said in line and mend in line for line in log.read_text().splitlines()), "what mends it, on the same line"
            assert ("second" in {one["node_id"] for one in secure.nodes()}) <= (wrong == "verify")
        finally:
            until((tmp_path / "node/node/keeper.sock").exists, what="a keeper")
            daemon.terminate()
            daemon.wait(30)
            shut_down(tmp_path / "node/node")  # it outlives the daemon, and would this test
    subprocess.run([OSTLER, "node", "drain", "second"], env=secure.env | secure.mine, capture_output=True, check=False)
    assert token not in log.read_text()


def test_a_certificate_is_renewed_while_a_job_runs(secure, tmp_path):
    go = tmp_path / "go"
    job_id = secure.sh(f"echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo ended")
    secure.wait_state(job_id, "running")
    before = secure.shown()
    done = run(secure, "ca", "renew", "coordinator", "--rekey", "--dir", secure.ca)
    assert done.returncode == 0, done.stderr
    until(lambda: secure.shown() != before, what="the new certificate")
    assert secure.shown() == (secure.ca / "coordinator.pem").read_text()
    go.touch()
    assert secure.wait(job_id)["state"] == "done"
    assert secure.log(job_id) == "begun\nended\n"
    secure.kill("node")  # the next one shakes hands anew
    done = run(secure, "run", "--", "echo", "again")
    assert (done.returncode, done.stdout) == (0, "again\n"), done.stderr


def test_up_says_what_is_missing_beyond_loopback(tmp_path):
    env = os.environ | {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "OSTLER_NODE__SANDBOX__LEVEL": "process"}
    done = subprocess.run(
        [OSTLER, "up", "--data", tmp_path / "d", "--listen", "0.0.0.0:0"],
        capture_output=True, text=True, env=env, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    for words in ("ostler ca init", "ostler ca issue coordinator", "tls: {cert:", "allow_insecure_listen"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
