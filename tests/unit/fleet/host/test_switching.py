"""What a switch does in which order: cut off anywhere, the next one for the same rollout leaves nothing out."""

import pytest

from ostler.fleet.host import daemon, switching, systemd, unit_files
from ostler.fleet.host.places import UNITS, WATCH_UNIT, Places, read_json, write_json

RELEASE = "0.2.0-0123456789ab"


class CutOff(BaseException):
    """As by SIGKILL."""


@pytest.fixture
def places(tmp_path, monkeypatch):
    places = Places(tmp_path)
    for folder in (places.units, places.updates, places.releases, places.release(RELEASE) / "units"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (*UNITS, WATCH_UNIT):
        (places.release(RELEASE) / "units" / name).write_text("[Unit]\n")
    write_json(places.lock, {"rollout_id": "r1"})
    monkeypatch.setattr(systemd, "show", lambda unit, *names: dict.fromkeys(names, ""))
    monkeypatch.setattr(systemd, "read_anew", lambda *units: None)
    monkeypatch.setattr(daemon, "ask", lambda *words: None)
    return places


def switch(places):
    switching.switch(places, rollout="r1", release=RELEASE, window_s=5.0, program=b"")


def test_a_switch_that_was_cut_off_before_its_watcher_started_is_watched_the_next_time(places, monkeypatch):
    """Else a release that is no good would stay, with nobody to put back the one before."""
    asked = []

    def act(verb, *units):
        asked.append((verb, *units))
        raise CutOff

    monkeypatch.setattr(systemd, "act", act)
    for _ in range(2):
        with pytest.raises(CutOff):
            switch(places)
        assert read_json(places.update)["state"] == "armed"
        assert (places.units / unit_files.WANTS / WATCH_UNIT).readlink() == places.units / WATCH_UNIT
    assert asked == [("restart", WATCH_UNIT)] * 2


def test_a_link_to_elsewhere_does_not_count_as_one_that_starts_at_boot(places, monkeypatch):
    link = places.units / unit_files.WANTS / WATCH_UNIT
    link.parent.mkdir()
    link.symlink_to("/dev/null")
    monkeypatch.setattr(systemd, "act", lambda verb, *units: (_ for _ in ()).throw(CutOff))
    with pytest.raises(CutOff):
        switch(places)
    assert link.readlink() == places.units / WATCH_UNIT
