"""The ids that the coordinator makes: unique, as long as they say, and in the order of their making."""

import base64
from datetime import UTC, datetime, timedelta

from ostler.coordinator.operations.jobs import new_job_ids
from ostler.model.manifest import JOB_ID

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def test_ids_of_one_call_are_unique_and_rise():
    ids = new_job_ids(NOW, 5000)
    assert len(set(ids)) == 5000
    assert ids == sorted(ids)
    assert all(len(one) == 28 and JOB_ID.fullmatch(one) for one in ids)


def test_ids_sort_by_the_time_of_their_making():
    ids = [new_job_ids(NOW + timedelta(milliseconds=late), 1)[0] for late in range(0, 5000, 7)]
    assert ids == sorted(ids)


def test_an_id_begins_with_its_milliseconds():
    [made] = new_job_ids(NOW, 1)
    raw = base64.b32hexdecode(made.removeprefix("j-").upper() + "======")
    assert int.from_bytes(raw[:6], "big") == int(NOW.timestamp() * 1000)
    assert raw[12:] == bytes(4), "counted from here on"
