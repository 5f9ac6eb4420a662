"""Rollouts over the API and the command line, with nodes that speak the protocol and have no host."""

import asyncio
import contextlib
import hashlib
from dataclasses import replace

import pytest

from cli_rig import ostler
from integration.api_rig import ADMIN, Rig, capabilities, coordinator, until
from ostler.cli import exits
from ostler.model.access import Role
from ostler.model.errors import Forbidden, Unauthenticated
from ostler.model.rollout.report import Report, Stage
from ostler.protocol import messages as m
from ostler.protocol import routes
from release_rig import HERE, make, new_keys

OLD = "0.9-000000000000"


@pytest.fixture
async def rig(tmp_path):
    async with coordinator(tmp_path / "c") as one:
        yield one


@pytest.fixture
async def release(rig, tmp_path):
    return await pushed(rig, tmp_path)


async def pushed(rig, tmp_path):
    made = make(tmp_path / "store", new_keys(tmp_path / "keys"))
    await rig.http.put(
        f"/releases/{made.release}", params={"trust": True, "digest": made.manifest.digest}, headers=rig.bearer(),
        content=made.bundle.read_bytes(),
    )  # fmt: skip
    return made


class Host:
    """A node whose host does at once what it is asked for; `verdict` is how its watcher judges."""

    def __init__(self, node, verdict=Stage.GOOD):
        self.node, self.verdict, self.told, self.release = node, verdict, None, OLD

    async def join(self):
        await self.node.register(await self.node.rig.join_token(), capabilities=self.able)
        await self.beat()
        return self

    @property
    def able(self):
        return replace(capabilities(self.node.node_id), release=self.release, updates=str(HERE))

    async def beat(self):
        request = m.HeartbeatRequest(node_id=self.node.node_id, held=(), update=self.told)
        answer = await self.node.call(routes.HEARTBEAT, request)
        return next((one.update for one in answer.directives if one.kind is m.DirectiveKind.UPDATE), None)

    async def live(self):
        """Until cancelled."""
        while True:
            if (wanted := await self.beat()) is not None and (self.told is None or self.told.update_id != wanted.rollout_id):
                await self.update(wanted)
            for lease in await self.node.pull():
                held = m.Held(lease.job_id, lease.attempt)
                await self.node.ack(held)
                await self.node.finish(m.Outcome(job_id=held.job_id, attempt=held.attempt, exit_code=0))
            await asyncio.sleep(0.02)

    async def update(self, wanted):
        rig = self.node.rig
        params = {"platform": wanted.platform}
        bundle = await rig.http.get(f"/releases/{wanted.release}/bundle", headers=rig.bearer(self.node.token), params=params)
        assert (len(bundle.content), hashlib.sha256(bundle.content).hexdigest()) == (wanted.size, wanted.sha256)
        why = "the daemon ended 2 times" if self.verdict is not Stage.GOOD else None
        if self.verdict is Stage.GOOD:
            self.release = wanted.release
            self.node.epoch += "+"
            challenge = (await self.challenge()).challenge
            await self.node.register(challenge=challenge, signature=self.sign(challenge), capabilities=self.able)
        self.told = Report(update_id=wanted.rollout_id, release=wanted.release, stage=self.verdict, reason=why)

    def sign(self, challenge):
        return self.node.key.sign(m.register_message(challenge, self.node.node_id, self.node.epoch))

    async def challenge(self):
        with pytest.raises(Unauthenticated) as caught:
            await self.node.register(capabilities=self.able)
        return caught.value


@contextlib.asynccontextmanager
async def living(*hosts):
    tasks = [asyncio.create_task(host.live()) for host in hosts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def cli(rig, monkeypatch):
    monkeypatch.setenv("OSTLER_URL", rig.url)
    monkeypatch.setenv("OSTLER_TOKEN", ADMIN)
    return lambda *args: asyncio.to_thread(ostler, "rollout", *args)


async def test_what_was_shown_is_what_begins(rig, release):
    """Conditional writes: who has seen another revision changes nothing."""
    host = await Host(rig.node("a")).join()
    planned = await rig.http.post("/rollouts", headers=rig.bearer(), json={"release": release.release})
    assert (planned.status_code, planned.headers["etag"]) == (201, '"1"')
    url = f"/rollouts/{planned.json()['rollout_id']}"
    for tag, status, code in (('"2"', 412, "outdated"), ('W/"1"', 412, "outdated"), ("1", 422, "invalid_spec")):
        refused = await rig.http.post(f"{url}/resume", headers=rig.bearer(**{"If-Match": tag}))
        assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert await host.beat() is None
    begun = await rig.http.post(f"{url}/resume", headers=rig.bearer(**{"If-Match": '"1"'}))
    assert (begun.status_code, begun.json()["state"], begun.headers["etag"]) == (200, "running", '"2"')
    held = await rig.http.post(f"{url}/pause", headers=rig.bearer(**{"If-Match": "*"}), json={"reason": "lunch"})
    assert (held.json()["state"], held.json()["reason"]) == ("held", "lunch")
    assert (await rig.http.get(url, headers=rig.bearer())).headers["etag"] == '"3"'
    assert (await rig.http.delete(f"/releases/{release.release}", headers=rig.bearer())).status_code == 409
    assert (await rig.http.post(f"{url}/abort", headers=rig.bearer(), json={})).json()["state"] == "aborted"
    rows = (await rig.people.call(routes.LIST_AUDIT, query=m.AuditQuery(principal="admin"))).items
    assert [one.action for one in rows if "rollout" in one.action and one.status < 300] == [
        "abort_rollout", "pause_rollout", "resume_rollout", "plan_rollout"
    ]  # fmt: skip


async def test_nodes_get_what_they_are_asked_for_and_nothing_else(rig, release, cli):
    hosts = [await Host(rig.node(name)).join() for name in ("a", "b", "c")]
    url = f"/releases/{release.release}/bundle"
    async with living(*hosts):
        done = await cli("start", "--yes", "--window", "1s")
    assert done.returncode == 0, done.stderr
    assert f"release {release.release} onto 3 nodes" in done.stdout
    assert "go first" in done.stdout
    assert " a updated\n" in done.stderr
    assert {host.release for host in hosts} == {release.release}
    assert (await rig.http.get(url, headers=rig.bearer(hosts[0].node.token))).status_code == 404
    shown = (await cli("show", "--json")).json
    assert (shown["state"], shown["counts"]) == ("done", {"updated": 3})
    again = await cli("start", "--yes")
    assert (again.returncode, "stay as it is" in again.stdout) == (0, True)
    listed = await cli("list")
    assert [line.split()[1] for line in listed.stdout.splitlines()[1:]] == ["aborted", "done"]


async def test_one_that_goes_back_stops_the_others(rig, release, cli):
    hosts = [await Host(rig.node(name), verdict).join() for name, verdict in (("a", Stage.WENT_BACK), ("b", Stage.GOOD))]
    async with living(*hosts):
        done = await cli("start", "--yes", "--json")
    assert done.returncode == exits.FAILED
    view = done.stdout.splitlines()[-1]
    assert '"state":"failed"' in view
    assert "the daemon ended 2 times" in view
    told = await cli("show")
    assert "canary a failed" in told.stdout
    assert f"try again: ostler rollout start {release.release} --node a --node b" in told.stderr


async def test_by_hand(rig, release, cli):
    await Host(rig.node("a")).join()
    refused = await cli("start")
    assert (refused.returncode, "there is nobody to ask" in refused.stderr) == (exits.USAGE, True)
    looked = await cli("start", "--dry-run", "--node", "a")
    assert (looked.returncode, "go first" in looked.stdout) == (0, True)
    assert "is running" in (await cli("start", "--yes", "--detach", "-m", "fixes")).stdout
    assert "is held" in (await cli("pause", "--reason", "lunch")).stdout
    assert "is running" in (await cli("resume")).stdout
    assert "is aborted" in (await cli("abort")).stdout
    wrong = await cli("resume")
    assert (wrong.returncode, "resume is not possible" in wrong.stderr) == (exits.REJECTED, True)
    assert (await cli("show", "nothing")).returncode == exits.REJECTED


async def test_an_older_release_is_refused_before_anything_is_planned(rig, release, cli):
    """For one of several nodes, in its row of the plan."""
    newer, other = [await Host(rig.node(name)).join() for name in ("a", "b")]
    newer.release = "9.0-000000000000"
    challenge = (await newer.challenge()).challenge
    await newer.node.register(challenge=challenge, signature=newer.sign(challenge), capabilities=newer.able)
    said = await cli("start", "--yes", "--node", "a")
    assert (said.returncode, said.stdout) == (exits.REJECTED, "")
    assert f"release {release.release} is older than 9.0-000000000000, which node a runs: hosts take no older" in said.stderr
    assert f"`ostler fleet update --release {release.release}` over SSH" in said.stderr
    assert (await cli("list")).stdout == ""
    looked = await cli("start", "--dry-run")
    assert looked.returncode == 0
    assert "be refused" in looked.stdout
    assert "is older than 9.0-000000000000, which runs there" in looked.stdout
    assert other.release == OLD


async def test_a_coordinator_that_was_restarted_goes_on(tmp_path):
    """In the middle of a rollout, under nodes that it finds again in whatever state they came to meanwhile."""
    one = Rig(tmp_path / "c")
    async with one.running():
        made = await pushed(one, tmp_path)
        hosts = [await Host(one.node(name)).join() for name in ("a", "b")]
        planned = await one.people.call(routes.PLAN_ROLLOUT, m.RolloutRequest(release=made.release, window_s=1.0))
        await one.people.call(routes.RESUME_ROLLOUT, rollout_id=planned.rollout_id)
        await until(hosts[0].beat)
    async with one.running(), living(*hosts):

        async def over():
            view = await one.people.call(routes.SHOW_ROLLOUT, rollout_id=planned.rollout_id)
            return view if view.state != "running" else None

        await until(over)
        view = await over()
    assert (view.state, view.counts) == ("done", {"updated": 2})


async def test_who_may(rig, release):
    async with rig.person(Role.SUBMITTER) as submitter:
        for route in (routes.LIST_ROLLOUTS, routes.LIST_RELEASES):
            with pytest.raises(Forbidden):
                await submitter.call(route)
