"""Endpoints for quotas: everybody sees how they stand, admins decide."""

from collections.abc import Callable
from typing import TypeVar

from ostler.coordinator.api.calls import Call
from ostler.coordinator.operations import quotas as ops
from ostler.coordinator.operations.views import check_limit, read_cursor, write_cursor
from ostler.model.errors import InvalidSpec, NotFound, Problem
from ostler.model.quota import HOUR_US, Quota, money_text, parse_hours, parse_money
from ostler.protocol import messages as m

MAX_JOBS = 1_000_000
T = TypeVar("T")


async def list_quotas(call: Call) -> m.QuotaPage:
    """Everybody's for those who see all, else the caller's own."""
    query = call.query(m.QuotaQuery)
    check_limit(query.limit)
    own = call.caller.principal if query.mine else call.owner
    if own is not None:
        return m.QuotaPage(items=(_view(await call.read(ops.show_quota, own)),))
    place = read_cursor(query.cursor, (str,))
    found = await call.read(ops.list_quotas, place[0] if place else "", query.limit + 1)
    more = len(found) > query.limit
    page = found[: query.limit]
    return m.QuotaPage(items=tuple(map(_view, page)), next_cursor=write_cursor(page[-1].principal) if more else None)


async def show_quota(call: Call) -> m.QuotaView:
    """One principal's."""
    principal = call.path["principal"]
    if call.owner not in {None, principal}:
        raise NotFound(f"there is no principal {principal} that this token reaches", hint="see `ostler quota`")
    return _view(await call.read(ops.show_quota, principal))


async def set_quota(call: Call) -> m.QuotaView:
    """All limits at once."""
    return _view(await call.write(ops.set_quota, call.path["principal"], _quota(await call.json(m.QuotaRequest))))


async def remove_quota(call: Call) -> m.QuotaView:
    """No limits any more."""
    return _view(await call.write(ops.remove_quota, call.path["principal"]))


def _quota(asked: m.QuotaRequest) -> Quota:
    """Raises InvalidSpec with every mistake."""
    problems: list[Problem] = []

    def checked(name: str, value: T | None, read: Callable[[T], int]) -> int | None:
        try:
            return None if value is None else read(value)
        except ValueError as exc:
            problems.append(Problem(name, str(exc)))
            return None

    quota = Quota(
        queued=checked("queued", asked.queued, _jobs), running=checked("running", asked.running, _jobs),
        cpu_us=checked("cpu_hours", asked.cpu_hours, parse_hours), gpu_us=checked("gpu_hours", asked.gpu_hours, parse_hours),
        money=checked("money", asked.money, parse_money),
    )  # fmt: skip
    if problems:
        raise InvalidSpec("the quota is not valid", problems)
    return quota


def _jobs(count: int) -> int:
    if not 0 <= count <= MAX_JOBS:
        raise ValueError(f"must be from 0 to {MAX_JOBS}")
    return count


def _view(one: ops.Standing) -> m.QuotaView:
    quota, used = one.quota, one.spent
    limits = None
    if quota is not None:
        limits = m.QuotaRequest(
            queued=quota.queued, running=quota.running, cpu_hours=_hours(quota.cpu_us), gpu_hours=_hours(quota.gpu_us),
            money=None if quota.money is None else money_text(quota.money),
        )  # fmt: skip
    return m.QuotaView(
        principal=one.principal, limits=limits, month=one.month.name, resets_at=one.month.ends_at,
        used=m.QuotaUse(
            queued=one.queued, running=one.running, cpu_hours=used.cpu_us / HOUR_US, gpu_hours=used.gpu_us / HOUR_US,
            money=money_text(used.money),
        ),
    )  # fmt: skip


def _hours(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / HOUR_US
