"""The failure table, end to end: each cause of death has its code, a message, and no retry where none makes sense."""

import hashlib
import http.server
import os
import subprocess
import threading

import pytest

from e2e.fleet import Fleet, until


@pytest.fixture(scope="module")
def web():
    """A real HTTP server with a good file and a big one."""

    class Files(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = {"/good.txt": b"good", "/big.bin": b"b" * (3 << 20), "/a/..%2Fevil": b"evil"}.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def failed(fleet, manifest, code, *words, tries=1):
    """Submit, and assert how it failed."""
    view = fleet.wait(fleet.submit(manifest))
    assert view["state"] == "failed", view
    assert view["failure"]["code"] == code, view["failure"]
    for word in words:
        assert word in view["failure"]["message"], view["failure"]
    assert view["tries"] == tries
    return view


def sh(script, **fields):
    return {"command": "sh", "args": ["-c", script], **fields}


def test_not_on_the_allowlist(fleet):
    failed(fleet, {"command": "rm", "args": ["-rf", "/"]}, "E_DENY", "rm")


def test_argument_refused_names_the_rule(fleet):
    failed(fleet, {"command": "sleep", "args": ["--help"]}, "E_DENY", "--help")


def test_input_not_found(fleet, web):
    failed(fleet, sh("true", input={"urls": [f"{web}/nothing.txt"]}), "E_INPUT", "404")


def test_input_too_large(fleet, web):
    failed(fleet, sh("true", input={"urls": [{"url": f"{web}/big.bin", "max_mb": 1}]}), "E_INPUT", "too large")


def test_input_with_a_wrong_checksum(fleet, web):
    wrong = hashlib.sha256(b"bad").hexdigest()
    failed(fleet, sh("true", input={"urls": [{"url": f"{web}/good.txt", "sha256": wrong}]}), "E_INPUT", "sha256")


def test_input_with_a_name_that_escapes(fleet, web):
    failed(fleet, sh("true", input={"urls": [f"{web}/a/..%2Fevil"]}), "E_INPUT", "evil")
    answer = fleet.http.post("/jobs", json=sh("true", input={"urls": [{"url": f"{web}/good.txt", "name": "../evil"}]}))
    assert answer.status_code == 422
    assert "input.urls[0].name" in answer.text


def test_inputs_arrive(fleet, web):
    job = fleet.sh("cat good.txt note", input={"urls": [f"{web}/good.txt"], "inline": {"note": "-inline"}})
    assert fleet.wait(job)["state"] == "done"
    assert fleet.log(job) == "good-inline"


def test_timeout(fleet):
    view = failed(fleet, sh("trap '' TERM; while :; do sleep 1; done", timeout_s=1, policy={"grace_s": 0.5}), "E_TIMEOUT", "1")
    assert view["attempts"][0]["usage"]["wall_s"] >= 1


def test_out_of_memory_by_evidence(fleet):
    hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"
    failed(fleet, sh(hog, policy={"memory_mb": 48}), "E_OOM", "48")


def test_a_kill_from_outside_is_not_out_of_memory(fleet):
    view = failed(fleet, sh("kill -KILL $$", policy={"memory_mb": 512}), "E_SIGNAL", "SIGKILL")
    assert view["signal"] == 9


def test_exit_code(fleet):
    view = failed(fleet, sh("echo why >&2; exit 3"), "E_EXIT", "3")
    assert view["exit_code"] == 3
    assert fleet.log(view["job_id"], "stderr") == "why\n"


def test_a_program_is_retried_only_when_asked(fleet):
    policy = {"max": 2, "backoff_s": 0.05, "max_backoff_s": 0.1}
    view = failed(fleet, sh("exit 3", retries=policy), "E_EXIT", tries=3)
    assert [one["state"] for one in view["attempts"]] == ["failed"] * 3


def test_output_missing(fleet):
    failed(fleet, sh("true", artifacts=[{"path": "out.txt"}]), "E_OUTPUT", "out.txt")


def test_output_too_large(fleet):
    failed(fleet, sh("head -c 2000000 /dev/zero > out", artifacts=[{"path": "out", "max_mb": 1}]), "E_OUTPUT", "out")


def test_output_that_links_to_a_secret(fleet):
    failed(fleet, sh("ln -s /etc/passwd out", artifacts=[{"path": "out"}]), "E_OUTPUT", "out")


def test_output_that_is_a_fifo(fleet):
    failed(fleet, sh("mkfifo out", artifacts=[{"path": "out"}]), "E_OUTPUT", "out")


def test_no_gpu_is_pending_and_explained(fleet):
    job = fleet.sh("true", requirements={"gpu": True})
    explained = fleet.get(f"/jobs/{job}/explain").json()
    assert explained["state"] == "queued"
    assert "gpu" in {blocker["requirement"] for blocker in explained["blockers"]}
    assert "GPU" in explained["summary"]
    assert "GPU" in fleet.cli("job", "explain", job).stdout
    assert fleet.cli("job", "cancel", job).returncode == 0
    assert fleet.job(job)["state"] == "cancelled"


def test_a_python_task_that_raises(fleet):
    view = failed(
        fleet, {"runner": "python", "task": "boom", "params": {"message": "no luck"}}, "E_TASK", "ValueError", "no luck"
    )
    assert "Traceback" in fleet.log(view["job_id"], "stderr")


def test_a_python_task_that_hangs(fleet):
    failed(fleet, {"runner": "python", "task": "hang", "timeout_s": 1.5}, "E_TIMEOUT")


def test_a_python_task_that_does_not_exist(fleet):
    view = fleet.wait(fleet.submit({"runner": "python", "task": "nowhere"}))
    assert view["state"] == "failed"
    assert "nowhere" in view["failure"]["message"]


def test_a_python_task_that_prints_50_mb(fleet):
    job = fleet.submit({"runner": "python", "task": "shout"})
    assert fleet.wait(job)["state"] == "done"
    log = fleet.log(job)
    assert len(log) == 50 << 20
    assert log == ("x" * 1023 + "\n") * (50 * 1024)


def test_a_python_task_with_progress_and_artifact(fleet):
    job = fleet.submit(
        {"runner": "python", "task": "product", "params": {"a": 6, "b": 7}, "artifacts": [{"path": "product.txt"}]}
    )
    view = fleet.wait(job)
    assert view["state"] == "done", view
    assert fleet.get(f"/jobs/{job}/artifacts/product.txt").text == "42"


def test_a_job_that_forks_away_is_killed_whole(fleet, tmp_path):
    mark = tmp_path / "pid"
    job = fleet.sh(f"(setsid sh -c 'echo $$ > {mark}; exec sleep 300' &) ; while [ ! -s {mark} ]; do sleep 0.05; done; exit 0")
    assert fleet.wait(job)["state"] == "done"
    pid = int(mark.read_text())
    until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the escaped process")


def test_a_disk_quota(fleet):
    failed(fleet, sh("head -c 30000000 /dev/zero > fill; sleep 30", policy={"disk_mb": 5}, retries=0), "E_DISK")
    failed(fleet, sh("head -c 30000000 /dev/zero > fill", policy={"disk_mb": 5}, retries=0), "E_DISK", "29 MB, quota 5")
    failed(fleet, sh("head -c 30000000 /dev/zero > fill; exit 3", policy={"disk_mb": 5}, retries=0), "E_EXIT")


def test_disk_full_in_the_workspace(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    root = tmp_path / "jobs"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", root], check=True)
    settings = {"OSTLER_NODE__WORKSPACE__ROOT": str(root), "OSTLER_NODE__WORKSPACE__MIN_FREE_MB": "1"}
    try:
        with Fleet(tmp_path / "data", settings=settings) as fleet:
            failed(fleet, sh("head -c 40000000 /dev/zero > fill", retries=0), "E_DISK")
            view = fleet.wait(fleet.sh("echo fine"))
            assert view["state"] == "done", view
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def test_the_sandbox_has_no_network_and_no_host(sandboxed, web):
    script = f"exec 3<>/dev/tcp/127.0.0.1/{web.rsplit(':', 1)[1]}"
    job = sandboxed.sh(f"bash -c '{script}' 2>/dev/null && echo connected; cat /etc/shadow; ls /root; echo over")
    view = sandboxed.wait(job)
    assert view["attempts"][0]["sandbox"] == "bwrap"
    assert sandboxed.log(job) == "over\n"


def test_failures_in_the_sandbox_are_told_as_truthfully(sandboxed):
    assert failed(sandboxed, sh("exit 3"), "E_EXIT", "3")["exit_code"] == 3
    assert failed(sandboxed, sh("kill -SEGV $$"), "E_SIGNAL", "SIGSEGV")["signal"] == 11
    failed(sandboxed, sh("sleep 60", timeout_s=1), "E_TIMEOUT")
    hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"
    failed(sandboxed, sh(hog, policy={"memory_mb": 48}), "E_OOM", "48")


def test_a_job_inherits_nothing_but_its_streams(fleet):
    """3 is the folder that ls reads."""
    job = fleet.sh("ls /proc/self/fd")
    assert fleet.wait(job)["state"] == "done"
    assert fleet.log(job).split() == ["0", "1", "2", "3"]
