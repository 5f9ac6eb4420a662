"""A host gets its first release and becomes a node, or ceases to be one: steps in their order, on whatever carries them out."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ostler.fleet.host_steps import HostSteps, answer, read_facts
from ostler.fleet.node_config import Own
from ostler.fleet.rollout.preflight import RETIRED, ROOM, Facts, is_retired
from ostler.fleet.ssh.step import Outcome, Step
from ostler.model.errors import Rejected

Run = Callable[[Step], Awaitable[Outcome]]
CONTACT_S = 45.0
TOKEN = "(a join token, made when it is needed)"  # noqa: S105 - stands in its place where nothing is executed


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a host gets. `bundle` makes what a host of a platform is sent, `token` answers a join token where one is needed."""

    release: str
    digest: str
    platforms: tuple[str, ...]
    bundle_mb: int
    bundle: Callable[[str], bytes]
    token: Callable[[], Awaitable[str | None]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A host before anything is changed: `refusal` says why nothing may begin; `upload` and `enrol` what it still needs."""

    facts: Facts
    refusal: str | None = None
    upload: bool = True
    enrol: bool = True


class Installation:
    """One host's. `run` carries a step out there and answers its outcome, or raises Rejected or MachineUnreachable."""

    def __init__(self, run: Run, wanted: Wanted, own: Own) -> None:
        self._run, self._wanted, self._own = run, wanted, own
        self._steps = HostSteps()

    async def look(self) -> Looked:
        """What the host is like; changes nothing."""
        facts = read_facts(await self._run(self._steps.facts([], thorough=True)))
        if facts.current is None and self._wanted.release in facts.releases:  # such as by an installation that was cut off
            altered = answer(await self._run(self._steps.altered(self._wanted.release)))["altered"]
            facts = msgspec.structs.replace(facts, altered=tuple(altered))
        return look_at(facts, self._wanted)

    async def carry_out(self, looked: Looked) -> dict[str, Any]:
        """All steps; answers what was changed and the daemon's health."""
        for step in await self.steps(looked, token=self._wanted.token if looked.enrol else None):
            said = answer(await self._run(step))
        return said

    async def steps(self, looked: Looked, *, token: Callable[[], Awaitable[str | None]] | None) -> list[Step]:
        """What would be executed after `look`, in its order."""
        wanted, steps = self._wanted, []
        if looked.upload:
            steps.append(self._steps.install(wanted.digest, wanted.bundle(platform_of(looked.facts))))
        told = None if token is None else await token()
        steps.append(self._steps.set_up(wanted.release, config=self._own.config, token=told, files=self._own.files))
        return steps


def look_at(facts: Facts, wanted: Wanted) -> Looked:
    """Whether the release may be installed on a host with these facts, and what of it is there."""
    health = facts.health or {}
    contact = health.get("last_contact_s")
    enrolled = facts.has_key and isinstance(contact, int | float) and contact <= CONTACT_S and health.get("enrolled") is not False
    upload = wanted.release not in facts.releases or (facts.current in {None, wanted.release} and bool(facts.altered))
    return Looked(
        facts=facts, refusal=_refusal(facts, wanted, upload=upload, enrolled=enrolled), upload=upload, enrol=not enrolled
    )


def platform_of(facts: Facts) -> str:
    """As releases name it: `cp311-x86_64`."""
    return f"{facts.abi}-{facts.arch}"


def _refusal(facts: Facts, wanted: Wanted, *, upload: bool, enrolled: bool) -> str | None:
    for directory, why in facts.refused.items():
        return f"cannot write to {directory}: {why}"
    if facts.current not in {None, wanted.release}:
        return f"release {facts.current} is installed here; `ostler fleet update` brings another one"
    if platform_of(facts) not in wanted.platforms:
        return (
            f"release {wanted.release} has nothing for {platform_of(facts)} ({facts.os}), only {', '.join(wanted.platforms)}; "
            f"build it with `ostler release build --platform {platform_of(facts)}`"
        )
    if upload and facts.disk_free_mb < (need := wanted.bundle_mb * (1 + ROOM)):
        return f"{facts.disk_free_mb} MB are free for releases, {need} are needed"
    if facts.lock is not None:
        return f"locked by {facts.lock.owner} ({facts.lock.message}); `ostler fleet lock break --why …` if it is dead"
    if facts.update is not None:
        return f"update {facts.update.update_id} is still being watched ({facts.update.state})"
    if is_retired(facts):
        return RETIRED
    if not enrolled and wanted.token is None:
        return "it needs a join token, and no coordinator is named that could make one"
    return None


async def uninstall(run: Run, *, keep_state: bool, end_jobs: bool) -> dict[str, Any]:
    """Take a host back to what it was; answers what was removed, put back and left."""
    return answer(await run(HostSteps().uninstall(keep_state=keep_state, end_jobs=end_jobs)))


def one_line(error: Rejected) -> str:
    """The first line of what a host said, with what to do."""
    first = error.message.partition("\n")[0]
    return first if error.hint is None else f"{first} ({error.hint})"
