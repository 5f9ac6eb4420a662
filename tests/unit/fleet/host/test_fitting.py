"""Whether a release accepts what it would be told: the real commands of this checkout in the place of a release's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ostler.fleet.host import fitting
from ostler.fleet.host.places import Places
from ostler.fleet.host.refusals import Refused
from ostler.fleet.host.told import Told

RELEASE = "0.2.0-0123456789ab"
ENTRY = "command: {path: /usr/bin/true}\n"


@pytest.fixture
def places(tmp_path):
    places = Places(tmp_path)
    for folder in (places.allowlist, places.updates, places.release(RELEASE) / "bin"):
        folder.mkdir(parents=True)
    program = places.release(RELEASE) / "bin/ostler"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexec {Path(sys.executable).with_name("ostler")} "$@"\n')
    program.chmod(0o755)
    return places


def config(places, *, runners="", coordinator=""):
    return (
        f"coordinator: {{base_url: 'https://192.0.2.1/api/v1'{coordinator}}}\n"
        f"runners: {{cli: {{enable: true, allowlist_dir: {places.allowlist}}}{runners}}}\n"
    )


def asked(places):
    log = places.root / "asked"
    return log.read_text().splitlines() if log.exists() else []


def refusal(places, told):
    with pytest.raises(Refused) as refused:
        fitting.check(places, RELEASE, told)
    assert refused.value.code == "unfit"
    assert "\n" not in refused.value.message
    assert not places.trial.exists()
    assert not places.trial.with_suffix(".d").exists()
    return refused.value


def test_what_it_accepted_is_asked_once_and_what_changed_again(places):
    told = Told(config(places), files={"allowlist.d/one.yaml": ENTRY})
    fitting.check(places, RELEASE, told)
    fitting.check(places, RELEASE, told)
    assert [line.split()[0] for line in asked(places)] == ["config", "allowlist"]
    fitting.check(places, RELEASE, Told(told.config, files={"allowlist.d/one.yaml": ENTRY + "\n"}))
    assert [line.split()[0] for line in asked(places)] == ["config", "allowlist", "allowlist"]


def test_the_trial_of_a_release_answers_for_both(places, tmp_path):
    file, entry = tmp_path / "node.yaml", places.allowlist / "one.yaml"
    file.write_text(config(places))
    for text, accepted in ((ENTRY, True), ("comand: {}\n", False)):
        entry.write_text(text)
        argv = [sys.executable, "-m", "ostler.assembly.trial", str(file), str(places.allowlist)]
        assert json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)["reads"] is accepted


@pytest.mark.parametrize("by", ["trial", "check"])
def test_what_it_accepted_counts_while_what_it_needs_is_there(places, tmp_path, by):
    """The host lost a folder that the configuration names: the daemon runs on without it, and no other would start."""
    tasks, file = tmp_path / "tasks", tmp_path / "node.yaml"
    tasks.mkdir()
    told = Told(config(places, runners=f", python: {{enable: true, task_paths: [{tasks}]}}"))
    file.write_text(told.config)
    if by == "trial":
        argv = [sys.executable, "-m", "ostler.assembly.trial", str(file)]
        needs = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)["needs"]
        fitting.remember(places, RELEASE, told.config, {}, needs)
    fitting.check(places, RELEASE, told)
    before = asked(places)
    fitting.check(places, RELEASE, told)
    assert asked(places) == before == ([] if by == "trial" else [f"config check --json {places.trial}"])
    tasks.rmdir()
    assert f"{tasks} is not a directory" in refusal(places, told).message


def test_mistakes_in_the_configuration_are_one_line_and_all_of_them_below(places):
    refused = refusal(places, Told(config(places) + "haert: 1\nfoo: 2\n"))
    assert refused.message.startswith(f"release {RELEASE} cannot read the configuration: node.yaml:3: haert: ")
    assert refused.message.endswith(", and 1 more")
    assert len(refused.details.splitlines()) == 2


def test_an_entry_that_is_there_already_counts_as_one_that_comes(places):
    """Where it has a mistake, the release would not start: the line says where it stands."""
    (places.allowlist / "old.yaml").write_text("comand: {}\nfoo: 1\n")
    refused = refusal(places, Told(config(places), files={"allowlist.d/new.yaml": ENTRY}))
    assert refused.message.startswith(f"release {RELEASE} does not accept the allowlist: {places.allowlist}/old.yaml:1: ")
    assert ", and " in refused.message
    assert all(line.startswith(f"{places.allowlist}/old.yaml:") for line in refused.details.splitlines())
    mended = Told(config(places), files={"allowlist.d/old.yaml": ENTRY})
    fitting.check(places, RELEASE, mended)


def test_what_the_host_does_not_have_is_a_mistake_but_not_what_comes_along(places):
    coming = Told(config(places, coordinator=f", ca_file: {places.config.parent}/ca.pem"), files={"ca.pem": "PEM"})
    places.allowlist.rmdir()
    fitting.check(places, RELEASE, coming)
    refused = refusal(places, Told(config(places, runners=", python: {enable: true, task_paths: [/srv/none]}")))
    assert "would not start with the configuration: " in refused.message
    assert "/srv/none is not a directory" in refused.message
