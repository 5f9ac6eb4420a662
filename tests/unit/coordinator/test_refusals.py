"""A flood of refused calls is counted, not written."""

from ostler.coordinator.api.refusals import ALL_BURST, BURST, EACH_S, OTHERS, REMEMBERED, Refusals


def test_one_who_floods_leaves_few_rows():
    refusals = Refusals(0.0)
    assert sum(refusals.take("eve", 0.0) for _ in range(1000)) == BURST
    assert refusals.take("ann", 0.0)
    assert not refusals.take("eve", EACH_S / 2)
    assert refusals.take("eve", EACH_S)
    assert refusals.left_out() == f"{1000 - BURST + 1} refused calls have no row of their own: {1000 - BURST + 1} of eve"
    assert refusals.left_out() is None


def test_many_who_flood_leave_few_rows_and_are_not_all_remembered():
    refusals = Refusals(0.0)
    written = sum(refusals.take(f"10.0.{n // 256}.{n % 256}", 0.0) for n in range(5 * REMEMBERED))
    assert written == ALL_BURST
    told = refusals.left_out()
    assert told.startswith(f"{5 * REMEMBERED - ALL_BURST} refused calls have no row of their own")
    assert f"of {OTHERS}" in told
    assert len(told) < 300
    assert len(refusals._known) == REMEMBERED
