"""What a switch does in which order: cut off anywhere, the next one for the same rollout leaves nothing out."""

import json
import subprocess
import sys

import pytest

from ostler.fleet.host import daemon, services, switching, systemd, unit_files
from ostler.fleet.host.places import NODE_UNIT, UNITS, WATCH_UNIT, Places, point, read_json, write_json

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


@pytest.mark.parametrize(("due", "is_left"), [(RELEASE, False), ("", True), ("0.1.0-aaaaaaaaaaaa", True)])
def test_the_start_that_was_due_is_done_by_a_switch_to_what_was_brought_anew(places, monkeypatch, due, is_left):
    """Not what an installation that was cut off still has to do."""
    monkeypatch.setattr(systemd, "act", lambda verb, *units: None)
    monkeypatch.setattr(services, "apply", lambda *words, **more: services.Outcome())
    places.start_due.write_text(due)
    switch(places)
    assert places.start_due.exists() == is_left


@pytest.mark.parametrize("restored", [True, False])
def test_what_the_unit_wrote_is_that_of_the_release_that_was_no_good(places, monkeypatch, restored):
    """The one before writes to the same journal as soon as it is started; where it does not start, why is one line."""
    wrote = ["no such key: foo"]
    before = places.release("0.1.0-aaaaaaaaaaaa")
    before.parent.mkdir(exist_ok=True)
    places.release(RELEASE).rename(before)
    point(places.current, f"releases/{RELEASE}")
    update = {"update_id": "r1", "release": RELEASE, "previous": before.name, "window_s": 5.0, "drained": True}
    write_json(places.update, {**update, "state": "watching"})

    def act(verb, *units):
        if units == (NODE_UNIT,):
            wrote.append("here I am again")
            if not restored:
                raise switching.Refused("unit", "systemctl restart: it failed", details="Main process exited\nFailed")

    monkeypatch.setattr(systemd, "act", act)
    monkeypatch.setattr(systemd, "journal", lambda unit, lines=30: "\n".join(wrote))
    switching.go_back(places, "it is no good")
    host = "import sys; from ostler.fleet.host.program import main; sys.exit(main(sys.argv[1:]))"  # by itself: it sets its umask
    argv = [sys.executable, "-c", host, "--root", str(places.root), "observe", "--rollout", "r1"]
    said = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert said["journal"] == "no such key: foo"
    ends = {True: ("went_back", "it is no good"), False: ("stuck", "it is no good; systemctl restart: it failed")}
    assert (said["state"], said["reason"]) == ends[restored]
