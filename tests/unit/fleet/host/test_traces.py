"""What an installation changes can be taken back, wherever it was cut off."""

import os
from pathlib import Path

import pytest

from ostler.fleet.host import belongings
from ostler.fleet.host.places import Places
from ostler.fleet.host.setting_up import Told
from ostler.fleet.host.traces import Traces

OURS = (os.geteuid(), os.getegid())


class Cut(BaseException):
    """The power is gone."""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for folder in ("etc/systemd/system", "etc/ostler", "var/lib/ostler-update"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/ostler/node.yaml").write_text("somebody's own\n")
    (tmp_path / "etc/ostler/node.yaml").chmod(0o640)
    (tmp_path / "etc/systemd/system/ostler-node.service").symlink_to("/dev/null")
    return Places(tmp_path)


def tree(root: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if not name.startswith("var/lib/ostler-update"):
            content = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
            found[name] = (path.lstat().st_mode, content)
    return found


def install(places: Places) -> bool:
    traces = Traces(places)
    changed = traces.directory(places.allowlist, mode=0o755, owner=OURS)
    changed |= traces.directory(places.state, mode=0o711, owner=OURS)
    changed |= traces.file(places.config, b"ours\n")
    changed |= traces.file(places.allowlist / "true.yaml", b"command: {path: /usr/bin/true}\n")
    return traces.file(places.units / "ostler-node.service", b"[Unit]\n") | changed


def test_it_is_taken_back_wherever_it_was_cut_off(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails at the n-th write, for every n: patched, since no real power failure stops a process between two calls."""
    before, whole, calls = tree(places.root), Path.replace, 0
    for cut_at in range(100):
        calls = 0

        def replace(self: Path, target: Path, cut_at: int = cut_at) -> Path:
            nonlocal calls
            calls += 1
            if calls > cut_at:
                raise Cut
            return whole(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        try:
            install(places)
            done = True
        except Cut:
            done = False
        monkeypatch.setattr(Path, "replace", whole)
        Traces(places).take_back()
        assert tree(places.root) == before
        (places.updates / "installed.json").unlink(missing_ok=True)
        if done:
            assert cut_at > 5
            return
    raise AssertionError("it never came to its end")


def test_what_is_so_already_is_left_alone(places: Places) -> None:
    assert install(places)
    assert not install(places)
    places.config.write_text("edited\n")
    assert install(places)
    assert places.config.read_text() == "ours\n"
    unit = places.units / "ostler-node.service"
    assert not any(Traces(places).is_back(one) for one in (places.config, unit, places.allowlist))
    Traces(places).take_back()
    assert places.config.read_text() == "somebody's own\n"
    assert all(Traces(places).is_back(one) for one in (places.config, unit))


def test_what_is_to_be_kept_stays(places: Places) -> None:
    install(places)
    (places.state / "key").write_text("k")
    removed, restored = Traces(places).take_back(keep=(places.state,))
    assert (places.state / "key").exists()
    assert "/var/lib/ostler" not in removed
    assert "/etc/ostler/node.yaml" in restored


@pytest.mark.parametrize("name", ["../../shadow", "/etc/shadow", "allowlist.d/../../x"])
def test_files_stay_beside_the_configuration(name: str) -> None:
    with pytest.raises(ValueError, match="leaves its directory"):
        Told.read(b'{"files": {"%s": ""}}' % name.encode())


def test_an_empty_directory_is_taken_over_and_given_back_empty(places: Places) -> None:
    """Such as a disk that was mounted there."""
    (places.state / "lost+found").mkdir(parents=True)
    places.state.chmod(0o700)
    before = tree(places.root)
    assert belongings.may_take_over(places.state)
    for _ in range(2):
        traces = Traces(places)
        traces.take_over(places.state)
        traces.directory(places.state, mode=0o711, owner=OURS)
    assert places.state.stat().st_mode & 0o777 == 0o711
    (places.state / "node").mkdir()
    (places.state / "node/node.key").touch()
    Traces(places).take_back(keep=(places.state,))
    assert (places.state / "node/node.key").exists()
    Traces(places).take_back()
    assert tree(places.root) == before
