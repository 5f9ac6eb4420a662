"""Secrets through the installed command line: set, listed, removed; in the environment and as files; masked in what a job says."""

import base64
import hashlib
import json
import secrets
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from e2e.fleet import Fleet

VALUE = "s3cr3t/+canary=V4lue"
TELLS = {
    "sh": {
        "command": {"path": "/bin/sh"},
        "args": [{"match": ["-c", ".*"], "required": True, "allow_slash": True, "allow_colon": True, "allow_dash": True}],
        "env": ["TOKEN", "OTHER"],
    }
}


@pytest.fixture(scope="module", params=["process", "bwrap"])
def told(request, tmp_path_factory):
    if request.param == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed and cannot be installed without root")
    with Fleet(tmp_path_factory.mktemp("told") / "data", level=request.param, allow=TELLS) as running:
        assert running.cli("secret", "set", "db", stdin=f"{VALUE}\n").stdout == "db is set (version 1)\n"
        yield running


def tell(fleet, script, uses, **fields):
    return fleet.submit({"command": "sh", "args": ["-c", script], "secrets": uses, **fields})


def test_set_list_and_remove(told, tmp_path):
    file = tmp_path / "value"
    file.write_bytes(bytes(range(256)))
    assert told.cli("secret", "set", "blob", "--file", file).returncode == 0
    again = told.cli("secret", "set", "blob", "--file", file, "--json")
    assert json.loads(again.stdout)["version"] == 2
    assert told.cli("secret", "set", "deploy", "--shared", "--role", "operator", "--pool", "gpu", stdin="abcdef").returncode == 0
    listed = told.cli("secret", "list")
    assert [line.split()[:3] for line in listed.stdout.splitlines()] == [
        ["NAME", "KIND", "VERSION"], ["blob", "own", "2"], ["db", "own", "1"],
    ], "a secret for operators is not for an admin to name"  # fmt: skip
    assert told.cli("secret", "rm", "blob").stdout == "blob is removed\n"
    assert told.cli("secret", "rm", "blob").returncode != 0
    assert told.cli("secret", "rm", "deploy", "--shared").returncode == 0
    short = told.cli("secret", "set", "short", stdin="abc")
    assert "not masked" in short.stderr
    assert told.cli("secret", "rm", "short").returncode == 0
    empty = told.cli("secret", "set", "nothing", stdin="")
    assert "the value is empty" in empty.stderr
    argued = told.cli("secret", "set", "argued", "hunter2", stdin="x")
    assert (argued.returncode, "hunter2" in argued.stderr) == (2, False)
    assert "the value is no argument" in argued.stderr
    misnamed = told.cli("secret", "set", "a b", stdin="abcdef")
    assert "'a b' is no name, which has 1 to 63 letters" in misnamed.stderr
    large = told.cli("secret", "set", "large", stdin="x" * 70000)
    assert "longer than 65536 bytes" in large.stderr


def test_in_the_environment_and_masked(told):
    script = 'echo "[$TOKEN]"; echo "$TOKEN" >&2; printf %s "$TOKEN" | sha256sum'
    job = tell(told, script, [{"name": "db", "env": "TOKEN"}])
    view = told.wait(job)
    assert view["state"] == "done", view["failure"]
    assert told.log(job) == f"[{'*' * len(VALUE)}]\n{hashlib.sha256(VALUE.encode()).hexdigest()}  -\n"
    assert told.log(job, "stderr") == f"{'*' * len(VALUE)}\n"
    assert VALUE not in json.dumps(view)


def test_as_a_file_in_memory(told):
    script = 'f="$OSTLER_SECRETS_DIR/key"; stat -c %a "$f"; stat -f -c %T "$f"; wc -c < "$f"; base64 -w0 "$f"; echo; cp "$f" got'
    job = tell(told, script, [{"name": "db", "file": "key"}], artifacts=[{"path": "got"}])
    assert told.wait(job)["state"] == "done", told.log(job, "stderr")
    mode, kind, size, encoded = told.log(job).split()
    assert (mode, kind, size) == ("400", "tmpfs", str(len(VALUE)))
    assert encoded.replace("=", "*") == "*" * len(base64.b64encode(VALUE.encode()))
    assert told.get(f"/jobs/{job}/artifacts/got").text == VALUE, "what a job writes itself is its own business"


def test_split_over_writes(told):
    half = len(VALUE) // 2
    script = (
        f'printf "%.{half}s" "$TOKEN"; sleep 0.7; printf "%s" "$TOKEN" | cut -c{half + 1}- ; head -c 70000 /dev/zero | tr "\\0" a'
    )
    script += '; echo "$TOKEN"; echo end'
    job = tell(told, script, [{"name": "db", "env": "TOKEN"}], stdout="kept", artifacts=[{"path": "kept"}])
    assert told.wait(job)["state"] == "done", told.job(job)
    stars = "*" * len(VALUE)
    assert told.log(job) == f"{stars}\n{'a' * 70000}{stars}\nend\n"
    assert told.get(f"/jobs/{job}/artifacts/kept").text == told.log(job)


@pytest.mark.parametrize("fail", [False, True])
def test_a_python_task(told, fail):
    uses = [{"name": "db", "env": "TOKEN"}, {"name": "db", "file": "db"}]
    job = told.submit({"runner": "python", "task": "confide", "params": {"fail": fail}, "secrets": uses})
    view = told.wait(job)
    stars = "*" * len(VALUE)
    assert told.log(job) == f"out: {stars}\ndb 0o400 {len(VALUE)}\n", told.log(job, "stderr")
    assert told.log(job, "stderr").startswith(f"err: {stars}\n")
    if fail:
        assert view["failure"]["code"] == "E_TASK"
        assert VALUE[:8] not in view["failure"]["message"]
    else:
        assert view["state"] == "done", view


def test_with_one_command(told):
    script = 'test -n "$TOKEN" && echo "$TOKEN" && cat "$OSTLER_SECRETS_DIR/db"'
    ran = told.cli("run", "--secret", "db=TOKEN", "--secret", "db", "--", "sh", "-c", script)
    assert (ran.returncode, ran.stdout) == (0, f"{'*' * len(VALUE)}\n{'*' * len(VALUE)}"), ran.stderr
    wrong = told.cli("run", "--secret", "db=LD_PRELOAD", "--", "true")
    assert "--secret: LD_PRELOAD cannot hold a secret" in wrong.stderr


def test_what_cannot_be_had_is_refused_when_it_is_submitted(told):
    answer = told.http.post(
        "/jobs", json={"command": "sh", "secrets": [{"name": "db", "env": "TOKEN"}, {"name": "nix", "env": "OTHER"}]}
    )
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["path"], error["message"]) == ("secrets[1].name", "there is no secret 'nix' that you may name")
    told.cli("secret", "set", "far", "--shared", "--pool", "gpu", stdin="abcdef")
    answer = told.http.post("/jobs", json={"command": "sh", "secrets": [{"name": "far", "env": "TOKEN"}]})
    assert answer.status_code == 422
    assert "is for jobs in the pool gpu; this one runs in default" in answer.text
    node = told.nodes()[0]["node_id"]
    view = told.wait(tell(told, "true", [{"name": "far", "env": "TOKEN"}], requirements={"node": node}))
    assert (view["failure"]["code"], view["tries"]) == ("E_SECRET", 1)
    assert "pool gpu" in view["failure"]["message"]
    denied = told.wait(tell(told, "true", [{"name": "db", "env": "NOT_GRANTED"}]))
    assert denied["failure"]["code"] == "E_DENY"


def test_a_submitter_has_secrets_that_nobody_else_has(told):
    one, other = (told.cli("token", "create", "--role", "submitter", "--name", name).stdout.strip() for name in ("ann", "bob"))
    name = f"mine-{secrets.token_hex(3)}"

    def call(token, method, path, **more):
        return told.http.request(method, path, headers={"Authorization": f"Bearer {token}"}, **more)

    assert call(one, "PUT", f"/secrets/{name}", content=b"anns-own-value").status_code == 200
    assert call(one, "PUT", "/secrets/shared?shared=true", content=b"anns-own-value").status_code == 403
    assert name in call(one, "GET", "/secrets").text
    assert name not in call(other, "GET", "/secrets").text
    assert name not in told.get("/secrets").text
    manifest = {"command": "sh", "args": ["-c", "echo $TOKEN"], "secrets": [{"name": name, "env": "TOKEN"}]}
    assert call(other, "POST", "/jobs", json=manifest).status_code == 422
    made = call(one, "POST", "/jobs", json=manifest)
    assert made.status_code == 201
    job = made.json()["items"][0]["job_id"]
    assert told.wait(job)["state"] == "done"
    assert told.log(job) == "*" * len("anns-own-value") + "\n"


def test_gone_meanwhile(told):
    told.cli("secret", "set", "brief", stdin="abcdefgh")
    later = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
    job = tell(told, "true", [{"name": "brief", "env": "TOKEN"}], not_before=later)
    assert told.http.delete("/secrets/brief").is_success  # a command would take its time
    view = told.wait(job)
    assert (view["failure"]["code"], view["tries"]) == ("E_SECRET", 1)
    assert "there is no secret brief any more" in view["failure"]["message"]
    again = told.cli("job", "retry", job)
    assert again.returncode != 0
    assert "there is no secret 'brief' that you may name" in again.stderr
    told.cli("secret", "set", "brief", stdin="abcdefgh")
    assert told.cli("job", "retry", job).returncode == 0


def test_what_is_no_text_fits_no_variable(told):
    assert told.http.put("/secrets/binary", content=b"ab\0cdefg").status_code == 200
    view = told.wait(tell(told, "true", [{"name": "binary", "env": "TOKEN"}]))
    assert (view["failure"]["code"], view["tries"]) == ("E_SECRET", 1)
    job = tell(told, 'wc -c < "$OSTLER_SECRETS_DIR/b"', [{"name": "binary", "file": "b"}])
    assert told.wait(job)["state"] == "done"
    assert told.log(job).strip() == "8"
