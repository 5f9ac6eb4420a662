"""What `ostler fleet status` sees on a real host that somebody changed, and that the command beside each line mends it."""

import json

import pytest

from e2e.fleet import until
from fleet.rig import NODE_UNIT

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(600, func_only=True)]
KEEPER, WATCH, UPDATE, PATH = "ostler-keeper.service", "ostler-watch.service", "ostler-update.service", "ostler-update.path"
UNITS = "/etc/systemd/system"
BOOT = f"{UNITS}/multi-user.target.wants"
ENTRIES = "/etc/ostler/allowlist.d"
# What somebody does, and what is said of it.
WRITTEN_ANEW = {
    f"systemctl disable {NODE_UNIT}": f"{NODE_UNIT} does not start with the host",
    f"ln -sfn /dev/null {BOOT}/{KEEPER}": f"{KEEPER} does not start with the host",
    f"rm {BOOT}/{PATH}": f"{PATH} does not start with the host",
    f"echo '# by hand' >> {UNITS}/{WATCH}": f"{WATCH} was edited",
    f"chmod 666 {UNITS}/{UPDATE}": f"{UPDATE} was edited",
    f"ln -sfn /dev/null {UNITS}/{KEEPER}": f"{KEEPER} was edited",
    f"rm {UNITS}/{PATH}": f"{PATH} is missing",
    "chmod 777 /etc/ostler/node.yaml": "/etc/ostler/node.yaml may be written by others than root (its mode is 0777)",
    f"chmod 777 {ENTRIES}": f"{ENTRIES} may be written by others than root (its mode is 0777)",
    f"chown ostler {ENTRIES}/sh.yaml": f"{ENTRIES}/sh.yaml belongs to ostler, not to root",
    f"chmod 600 {ENTRIES}/sleep.yaml": f"{ENTRIES}/sleep.yaml cannot be read by the user ostler (its mode is 0600)",
}
EDITED = f"/run/systemd/system/{KEEPER}.d/more.conf"


def findings(operator, name, *args, release=None, code=1):
    """What differs on a host, and the command that is named for it."""
    words = ("--release", release or operator.in_force(name), "--json", *args)
    (one,) = json.loads(operator.fleet("status", *words, host=name, code=code).stdout)["hosts"].values()
    return {found["what"]: found["mend"] for found in one["findings"]}


def broken(host):
    """All of it, and systemd has read it."""
    host.exec("sh", "-ec", "\n".join([*WRITTEN_ANEW, "systemctl daemon-reload"]))


@pytest.mark.parametrize("mend", ["what is printed", "install"])
def test_what_is_not_as_it_was_written_is_named_and_written_anew(installed, host, mend):
    assert findings(installed, "mini-1", code=0) == {}
    broken(host)
    try:
        found = findings(installed, "mini-1")
        assert set(found) == set(WRITTEN_ANEW.values())
        assert len(set(found.values())) == 1
        (command,) = set(found.values())
        assert command.startswith("ostler fleet update ")
        plan = installed.fleet("update", "--release", installed.in_force("mini-1"), "--dry-run", host="mini-1", code=0).stdout
        assert all(what in plan for what in found)
        if mend == "install":
            said = installed.install("--yes", host="mini-1").stdout
            assert f"{KEEPER} at boot" in said
        else:
            installed.mend(command)
        assert findings(installed, "mini-1", code=0) == {}
    finally:
        installed.install("--yes", host="mini-1")
        installed.good_again("mini-1")


def test_a_node_that_was_retired_is_named_and_made_anew(installed):
    installed.cli("node", "retire", "mini-1", code=0)
    try:
        until(lambda: installed.health("mini-1").get("retired"), timeout=90, what="the node's word")
        found = findings(installed, "mini-1")
        assert list(found) == ["its node was retired"]
        for command in ("install", "update"):
            done = installed.fleet(command, "--yes", "--release", installed.in_force("mini-1"), host="mini-1", code=1)
            assert "its node was retired" in done.stdout + done.stderr
        for mend in found["its node was retired"].split(" && "):
            installed.mend(mend)
        assert findings(installed, "mini-1", code=0) == {}
    finally:
        installed.install("--yes", host="mini-1")
        installed.good_again("mini-1")


def test_what_was_stopped_or_changed_by_others_is_named_and_mended(installed, host):
    host.exec("systemctl", "stop", PATH)
    host.exec("sh", "-ec", f"mkdir -p $(dirname {EDITED}); printf '[Service]\\nNice=1\\n' > {EDITED}")
    try:
        found = findings(installed, "mini-1")
        keep, command = found.pop(f"{KEEPER} is changed by {EDITED}").split(": ", 1)
        assert keep == "keep it, or"
        assert set(found) == {f"{PATH} is inactive", f"systemd has not read {KEEPER} as it is now"}
        for mend in (*found.values(), command):
            installed.mend(mend)
        assert findings(installed, "mini-1", code=0) == {}
        assert host.exec("systemctl", "is-active", PATH).stdout == "active\n"
    finally:
        host.exec("rm", "-rf", EDITED.rpartition("/")[0])
        host.exec("systemctl", "daemon-reload")
        host.exec("systemctl", "start", PATH)


def test_while_an_update_is_watched_there_is_nothing_but_to_wait(installed, host):
    """And to have it watched, where its watcher was stopped."""
    before, good = installed.in_force("mini-1"), installed.good("waited for")
    try:
        with installed.updating(good, "--window", "15s", host="mini-1") as updater:
            until(
                lambda: (installed.facts("mini-1")["update"] or {}).get("state") == "watching",
                timeout=60,
                what="a watched update",
            )
            host.exec("systemctl", "stop", WATCH)
            found = findings(installed, "mini-1", release=before)
            watcher = found.pop(f"{WATCH} is inactive, and an update is open")
            assert f"release {good}, not {before}" in found
            assert set(found.values()) == {"wait until its window is over"}
            installed.mend(watcher)
            updater.communicate(timeout=120)  # to its end: it gives the lock back
    finally:
        installed.ask("mini-1", "break-lock", "--why", "over", "--owner", "test")
    installed.good_again("mini-1")
    assert findings(installed, "mini-1", release=good, code=0) == {}
    assert installed.update(before, host="mini-1").ends == {"mini-1": "updated"}


def test_what_was_altered_of_the_release_in_force_is_named_and_brought_anew(installed, host):
    """Its daemon is started anew with it, its keeper is not: jobs go on."""
    release = f"/opt/ostler/releases/{installed.in_force('mini-1')}"
    module, stray = "lib/python3.11/site-packages/ostler/assembly/node.py", "lib/python3.11/site-packages/stray.pth"
    whole = host.exec("sha256sum", f"{release}/{module}").stdout
    job, pids = installed.sleeper("mini-1")
    host.exec(
        "sh", "-ec", f"cd {release}; cp {module} /tmp/new; echo '# by hand' >> /tmp/new; mv /tmp/new {module}; touch {stray}"
    )
    host.exec("sh", "-ec", f"echo '# by hand' >> {release}/bin/ostler")
    before = host.exec("systemctl", "show", "--property=MainPID", NODE_UNIT).stdout
    ((what, mend),) = findings(installed, "mini-1").items()
    assert what == f"of release {installed.in_force('mini-1')} was altered on the host: bin/ostler, {module}, {stray}"
    installed.mend(mend)
    assert findings(installed, "mini-1", code=0) == {}
    assert host.exec("sha256sum", f"{release}/{module}").stdout == whole
    assert host.exec("systemctl", "show", "--property=MainPID", NODE_UNIT).stdout != before
    assert host.exec("sh", "-c", "ls /opt/ostler/releases | grep partial", check=False).stdout == ""
    assert installed.pids("mini-1") == pids
    installed.cli("job", "cancel", job, code=0)


def test_what_else_was_done_to_a_release_is_named_and_mended_by_what_is_printed(installed, host):
    """Without its interpreter the release cannot be asked about anything; and one that became a link."""
    current = installed.in_force("mini-1")
    release, packages = f"/opt/ostler/releases/{current}", "lib/python3.11/site-packages"
    done = {
        "rm bin/python": "bin/python",
        "echo '# by hand' >> pyvenv.cfg": "pyvenv.cfg",
        f"chown ostler {packages}/yaml": f"{packages}/yaml",
    }
    host.exec("sh", "-ec", "\n".join([f"cd {release}", *done]))
    ((what, mend),) = findings(installed, "mini-1").items()
    assert what == f"of release {current} was altered on the host: {', '.join(sorted(done.values()))}"
    installed.mend(mend)
    assert findings(installed, "mini-1", code=0) == {}
    host.exec(
        "sh", "-ec", f"mv {release} /opt/elsewhere; ln -s /opt/elsewhere {release}; ln -s /opt /opt/ostler/releases/x.partial"
    )
    ((what, mend),) = findings(installed, "mini-1").items()
    assert what == f"of release {current} was altered on the host: {current}"
    installed.mend(mend)
    assert findings(installed, "mini-1", code=0) == {}
    host.exec("rm", "-r", "/opt/elsewhere")


def test_a_release_that_shares_an_edited_file_is_sent_again_before_it_is_put_in_force(installed, host):
    before, other = installed.in_force("mini-1"), installed.good("shares")
    assert installed.update(other, host="mini-1").ends == {"mini-1": "updated"}
    file = "lib/python3.11/site-packages/yaml/loader.py"
    host.exec("sh", "-ec", f"echo '# by hand' >> /opt/ostler/releases/{other}/{file}")
    assert installed.update(before, host="mini-1").ends == {"mini-1": "updated"}
    assert findings(installed, "mini-1", code=0) == {}
    assert "by hand" in host.exec("tail", "-1", f"/opt/ostler/releases/{other}/{file}").stdout
    assert "by hand" not in host.exec("tail", "-1", f"/opt/ostler/releases/{before}/{file}").stdout
    assert installed.update(other, host="mini-1").ends == {"mini-1": "updated"}
    assert findings(installed, "mini-1", code=0) == {}
    assert installed.update(before, host="mini-1").ends == {"mini-1": "updated"}


def test_an_entry_that_somebody_else_put_there_is_never_made_roots_by_a_command(installed, host):
    evil = f"{ENTRIES}/evil.yaml"
    host.exec("tee", evil, stdin="command: {path: /usr/bin/true}\n")
    host.exec("chown", "ostler", ENTRIES, evil)
    try:
        found = findings(installed, "mini-1")
        assert set(found) == {
            f"{ENTRIES} belongs to ostler, not to root",
            f"{evil} belongs to ostler, not to root, and no installation wrote it",
        }
        look = found.pop(f"{evil} belongs to ostler, not to root, and no installation wrote it")
        installed.mend(found.popitem()[1])
        installed.install("--yes", host="mini-1")
        assert list(findings(installed, "mini-1").values()) == [look]
        assert host.exec("stat", "-c", "%U", evil).stdout == "ostler\n"
        host.exec("sh", "-ec", look.rpartition(", else ")[2])
        assert findings(installed, "mini-1", code=0) == {}
    finally:
        host.exec("sh", "-ec", f"rm -f {evil}; chown root {ENTRIES}")


def test_an_allowlist_with_a_mistake_is_named_before_the_daemon_reads_it(installed, host):
    file = f"{ENTRIES}/sh.yaml"
    before = host.exec("cat", file).stdout
    host.exec("sh", "-ec", f"echo 'command: [' > {file}")
    try:
        ((what, mend),) = findings(installed, "mini-1").items()
        assert what.startswith(f"{file}:")
        correct, command = mend.split(": ", 1)
        assert correct == "correct it there, remove it, or bring another one"
        installed.mend(command.replace("DIR", str(installed.folder / "allow")))
        assert findings(installed, "mini-1", code=0) == {}
    finally:
        host.exec("tee", file, stdin=before)
