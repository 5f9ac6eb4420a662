"""SIGHUP to a daemon at work: what of its configuration holds from then on, and that a mistake in it changes nothing."""

import json
import signal

import yaml

from e2e.fleet import until


def events(fleet, name):
    lines = (fleet.data / "log" / "node.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == name]


def test_a_reload_changes_limits_and_allowlist_and_a_mistake_changes_nothing(own_fleet):
    fleet = own_fleet().start()
    file = fleet.data / "node.yaml"
    config = yaml.safe_load(file.read_text())
    node = fleet.processes()["node"]
    running = fleet.sh("sleep 100")
    fleet.wait_state(running, "running")
    config.setdefault("resources", {})["open_files"] = 321
    file.write_text(yaml.safe_dump(config))
    (fleet.data / "allowlist.d" / "uname.yaml").write_text(yaml.safe_dump({"command": {"path": "/usr/bin/uname"}}))
    node.send_signal(signal.SIGHUP)
    until(lambda: events(fleet, "config_reloaded"), what="the reload")
    assert fleet.wait(job := fleet.sh("ulimit -n"))["state"] == "done"
    assert fleet.log(job).strip() == "321"
    assert fleet.wait(fleet.submit({"command": "uname"}))["state"] == "done"
    assert not events(fleet, "config_waits_for_a_restart"), "all of it is in force"
    config["logging"] = {**config.get("logging", {}), "level": "debug"}
    config["tags"] = ["fast"]
    file.write_text(yaml.safe_dump(config))
    node.send_signal(signal.SIGHUP)
    [waits] = until(lambda: events(fleet, "config_waits_for_a_restart"), what="what a reload does not do")
    assert waits["attrs"]["settings"] == ["tags"]
    config["resources"]["open_files"] = "many"
    file.write_text(yaml.safe_dump(config))
    node.send_signal(signal.SIGHUP)
    refused = until(lambda: events(fleet, "reload_refused"), what="the refusal")
    assert "open_files" in refused[0]["attrs"]["error"]
    assert fleet.wait(job := fleet.sh("ulimit -n"))["state"] == "done"
    assert fleet.log(job).strip() == "321"
    assert node.is_running()
    assert fleet.job(running)["state"] == "running"
