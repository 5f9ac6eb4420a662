"""Several submitters on one node: both get on, and what somebody waits for overtakes a batch."""

import json

import httpx
import pytest

from e2e.fleet import OVER, until


@pytest.fixture
def people(own_fleet):
    """A fleet with two slots, and a function that gives a submitter's own client."""
    fleet = own_fleet(slots=2).start()
    clients = []

    def person(name):
        made = json.loads(fleet.cli("token", "create", "--role", "submitter", "--name", name, "--json").stdout)
        client = httpx.Client(base_url=f"{fleet.url}/api/v1", headers={"Authorization": f"Bearer {made['token']}"}, timeout=90)
        clients.append(client)
        return client

    yield fleet, person
    for client in clients:
        client.close()


def submit(client, manifest):
    answer = client.post("/jobs", json=manifest)
    assert answer.status_code == 201, answer.text
    return answer.json()["items"]


def test_ten_jobs_do_not_wait_for_ten_thousand(people, capsys):
    fleet, person = people
    many, few = person("many"), person("few")
    [first, *_] = submit(many, {"command": "true", "array": 10_000})
    big = first["group_id"]
    until(lambda: many.get(f"/groups/{big}").json()["counts"].get("done"), what="the first of the many")
    last = submit(few, {"command": "true"})[0]["job_id"]
    told = json.loads(fleet.cli("job", "explain", last, "--json").stdout)
    small = submit(few, {"command": "true", "array": 10})[0]["group_id"]
    done = until(
        lambda: (view := few.get(f"/groups/{small}", params={"wait_s": 30}).json())["finished_at"] and view, what="the ten"
    )
    counts = many.get(f"/groups/{big}").json()["counts"]
    with capsys.disabled():
        print(f"\nwhen 10 of 10 were done, {counts['done']} of 10000 were")
    assert done["counts"] == {"done": 10}
    assert 0 < counts["done"] < 5000  # both got on, and the ten did not wait for the rest
    assert counts["queued"] > 5000
    assert told["others"] <= 1
    assert many.get(f"/groups/{small}").status_code == few.get(f"/groups/{big}").status_code == 404
    assert many.post(f"/groups/{big}/cancel", json={}).status_code == 200


def test_an_interactive_job_overtakes_a_batch_that_its_node_has_already(people):
    fleet, person = people
    me = person("me")
    batch = [item["job_id"] for item in submit(me, [{"command": "sh", "args": ["-c", "sleep 0.1"]}] * 300)]

    def held():
        return [one["job_id"] for one in me.get("/nodes").json()["items"][0]["attempts"]]

    until(lambda: len(held()) > 10, what="a batch that was leased ahead")
    ahead = held()
    hasty = submit(me, {"command": "echo", "args": ["now"], "queue": "interactive"})[0]["job_id"]
    view = until(lambda: (one := fleet.job(hasty))["state"] in OVER and one, what="the interactive job")
    assert view["state"] == "done"

    def event(job_id, kind=None):
        """The id of an event of a job: of its (first) kind, or of the last; ids grow over all jobs."""
        timeline = fleet.wait(job_id)["timeline"]
        return timeline[-1]["id"] if kind is None else next(one["id"] for one in timeline if one["kind"] == kind)

    leased, over = event(hasty, "lease"), event(hasty)
    overtaken = [one for one in ahead if event(one, "lease") < leased and event(one) > over]
    assert overtaken, "nothing that the node had before was still to come"
    assert sorted(fleet.wait(one)["state"] for one in batch[:20]) == ["done"] * 20
