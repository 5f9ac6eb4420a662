"""Two coordinators on one PostgreSQL behind HAProxy: killed and cut off in the middle of work, and everything ends once."""

import threading
from collections import Counter

import httpx
import pytest

import postgres
from e2e.fleet import until
from e2e.replicas import Replicas

BATCH = 1000


@pytest.fixture
def server():
    try:
        one = postgres.Server(durable=True)
    except postgres.Missing as exc:
        pytest.skip(str(exc))
    yield one
    one.close()


@pytest.fixture
def replicas(server, tmp_path):
    with Replicas(tmp_path / "fleet", server.url(server.create()), settings={"lease": "12s", "heartbeat": "2s"}) as running:
        yield running


def square(number):
    return {"runner": "python", "task": "calls:slow_square", "params": {"args": [number], "kwargs": {}}}


@pytest.mark.timeout(900, func_only=True)
@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.long)])
def test_killed_and_cut_off_in_the_middle_nothing_is_lost(replicas, server, count):
    with replicas.join("n1", slots=4) as node:
        jobs = []
        for first in range(0, count, BATCH):
            some = [square(number) for number in range(first, min(first + BATCH, count))]
            jobs += replicas.submit_safely(some, f"from {first}")

        def over():
            page = replicas.get("/jobs", state="done", count="true", limit=1).json()
            return page["total"]

        until(lambda: over() >= count // 6, timeout=120, what="the first jobs")
        replicas.replicas[0].kill()
        until(lambda: over() >= count // 3, timeout=120, what="the next jobs, with one coordinator")
        server.restart()
        until(lambda: over() >= count // 2, timeout=120, what="the next jobs, with the database back")
        replicas.replicas[0].start()
        server.crash()
        server.start()
        until(lambda: over() == count, timeout=60 + count / 10, what="all jobs")
        views = {view["job_id"]: view for view in (replicas.job(job) for job in jobs)}
        assert Counter(view["state"] for view in views.values()) == {"done": count}
        for view in views.values():
            kinds = Counter(event["kind"] for event in view["timeline"])
            assert (kinds["submit"], kinds["finish"]) == (1, 1), view
        # Nobody stood still for as long as a lease: none of them was taken from the node for its silence.
        assert not [view for view in views.values() if any("silent" in (event["message"] or "") for event in view["timeline"])]
        assert node.process.poll() is None


def test_what_one_commits_the_other_tells_at_once(replicas):
    """Long polls, awaited jobs, events, logs and revocations, each at the coordinator that did not do it."""
    with replicas.join("n1", slots=2):
        assert {len(replicas.at(number, "/nodes").json()["items"]) for number in range(2)} == {1}
        headers = {"Authorization": f"Bearer {replicas.token}"}
        seen = []

        def follow():
            with httpx.stream(
                "GET", f"{replicas.replicas[1].url}/api/v1/events", params={"follow": "true", "after": "latest"},
                headers={**headers, "Accept": "text/event-stream"}, timeout=60,
            ) as stream:  # fmt: skip
                began.set()
                for line in stream.iter_lines():
                    if line.startswith("event: "):
                        seen.append(line.removeprefix("event: "))
                        if seen[-1] == "finish":
                            return

        began = threading.Event()
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        assert began.wait(30)
        answer = httpx.post(f"{replicas.replicas[0].url}/api/v1/jobs", json=square(7), headers=headers, timeout=30)
        job = answer.json()["items"][0]["job_id"]
        there = f"{replicas.replicas[1].url}/api/v1"
        waited = httpx.post(f"{there}/jobs/await", json={"job_ids": [job], "wait_s": 50}, headers=headers, timeout=60).json()
        assert [one["job"]["state"] for one in waited["items"]] == ["done"], waited
        follower.join(60)
        assert not follower.is_alive()
        made = httpx.post(
            f"{replicas.replicas[0].url}/api/v1/tokens",
            json={"kind": "api", "role": "viewer", "principal": "eve"},
            headers=headers,
            timeout=30,
        ).json()
        eve = {"Authorization": f"Bearer {made['token']}"}
        assert httpx.get(f"{there}/nodes", headers=eve).status_code == 200
        gone = httpx.delete(f"{replicas.replicas[0].url}/api/v1/tokens/{made['token_id']}", headers=headers, timeout=30)
        assert gone.status_code in {200, 204}, gone.text
        until(
            lambda: httpx.get(f"{there}/nodes", headers=eve).status_code == 401,
            what="the refusal of a token that the other one revoked",
        )
        health = [httpx.get(f"{one.url}/healthz").json()["checks"] for one in replicas.replicas]
        for name in ("lease_rescuer", "pruner", "audit_sealer", "webhook_sender"):
            assert sorted(check[name] for check in health) == ["another coordinator does it", "ok"], name


def test_one_with_other_keys_is_refused_and_says_what_to_do(replicas):
    from e2e.replicas import Replica

    stranger = Replica(replicas.data / "stranger", replicas.store, replicas.data / "artifacts", replicas.env, {})
    with pytest.raises(AssertionError, match="copy the directory keys/"):
        stranger.start()
    stranger.stop()
