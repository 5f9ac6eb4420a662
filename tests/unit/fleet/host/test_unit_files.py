"""What stands on a host beside what was written there: other modes and owners, links that start nothing, files that change units."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ostler.fleet.host import access, unit_files
from ostler.fleet.host.places import KEEPER_UNIT, NODE_UNIT, UPDATE_PATH, Places
from ostler.fleet.host.traces import Traces


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    before = os.umask(0o022)  # as a host's own commands have it
    places = Places(tmp_path)
    (places.units / unit_files.WANTS).mkdir(parents=True)
    places.updates.mkdir(parents=True)
    yield places
    os.umask(before)


def written(path: Path, text: str = "as it was", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o777, 0o600, 0o664])
def test_another_mode_is_another_file(tmp_path: Path, mode: int) -> None:
    file = written(tmp_path / NODE_UNIT)
    assert unit_files.is_as_written(file, b"as it was")
    assert not unit_files.is_as_written(file, b"edited")
    file.chmod(mode)
    assert not unit_files.is_as_written(file, b"as it was")


def test_neither_a_link_nor_nothing_is_as_written(tmp_path: Path) -> None:
    link = tmp_path / "link"
    assert not unit_files.is_plain(link)
    link.symlink_to(written(tmp_path / NODE_UNIT))
    assert not unit_files.is_plain(link)


@pytest.mark.parametrize(
    ("target", "starts"), [("{units}/{unit}", True), ("../{unit}", True), ("/dev/null", False), ("../other.service", False)]
)
def test_what_starts_with_the_host_is_a_link_to_the_unit(places: Places, target: str, starts: bool) -> None:
    assert not unit_files.starts_at_boot(places, NODE_UNIT)
    link = places.units / unit_files.WANTS / NODE_UNIT
    link.symlink_to(target.format(units=places.units, unit=NODE_UNIT))
    assert unit_files.starts_at_boot(places, NODE_UNIT) is starts


def test_drop_ins_are_found_wherever_systemd_looks(places: Places) -> None:
    for name in (
        "etc/systemd/system/ostler-keeper.service.d/a.conf",
        "run/systemd/system.control/ostler-keeper.service.d/b.conf",
    ):
        written(places.root / name)
    written(places.root / "etc/systemd/system/ostler-.service.d/all.conf")
    written(places.root / "etc/systemd/system/ostler-keeper.service.d/a.conf.off")
    both, all_ = "ostler-keeper.service.d", "/etc/systemd/system/ostler-.service.d/all.conf"
    of_keeper = [all_, f"/etc/systemd/system/{both}/a.conf", f"/run/systemd/system.control/{both}/b.conf"]
    assert unit_files.drop_ins(places, KEEPER_UNIT) == of_keeper
    assert unit_files.drop_ins(places, NODE_UNIT) == [all_]
    assert unit_files.drop_ins(places, UPDATE_PATH) == []
    assert unit_files.all_drop_ins(places) == of_keeper


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o777, "may be written by others than root (its mode is 0777)"),
        (0o664, "may be written by others than root (its mode is 0664)"),
        (0o600, "cannot be read by the user ostler (its mode is 0600)"),
    ],
)
def test_what_others_could_change_is_named_and_taken_from_them(places: Places, mode: int, words: str) -> None:
    written(places.config, mode=mode)
    Traces(places).directory(places.allowlist, mode=0o755, owner=(os.geteuid(), os.getegid()))
    Traces(places).file(places.allowlist / "sh.yaml", b"as it was")
    (places.allowlist / "sh.yaml").chmod(mode)
    written(places.config.parent / "secret.env", mode=0o600)  # its owner's
    assert access.wrong(places) == {str(path): words for path in (places.allowlist / "sh.yaml", places.config)}
    assert set(access.mend(places, Traces(places))) == {str(places.allowlist / "sh.yaml"), str(places.config)}
    assert access.wrong(places) == {}
    assert (places.config.parent / "secret.env").stat().st_mode & 0o777 == 0o600
    Traces(places).take_back()
    assert places.config.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_a_link_that_others_made_opens_nothing(places: Places, link: Callable[[Path, Path], None]) -> None:
    """Else whoever can write there has root open any file of the host for them."""
    secret = written(places.root / "etc/shadow", mode=0o600)
    places.allowlist.mkdir(parents=True)
    link(places.allowlist / "mine.yaml", secret)
    assert access.mend(places, Traces(places)) == []
    assert secret.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("name", ["etc/ostler", "etc/ostler/allowlist.d"])
def test_a_directory_that_others_could_write_is_taken_from_them_whoever_made_it(places: Places, made: bool, name: str) -> None:
    """And is as it was once the installation is taken back."""
    folder = places.root / name
    if made:
        Traces(places).directory(folder, mode=0o755, owner=(os.geteuid(), os.getegid()))
    written(places.config)
    places.allowlist.mkdir(exist_ok=True)
    folder.chmod(0o777)
    assert access.wrong(places) == {str(folder): "may be written by others than root (its mode is 0777)"}
    assert access.mend(places, Traces(places)) == [str(folder)]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert access.wrong(places) == {}
    Traces(places).take_back()
    assert folder.exists() != made
    assert made or folder.stat().st_mode & 0o777 == 0o777


def test_a_directory_that_was_there_before_is_opened_to_nobody(places: Places) -> None:
    """There may be other things of its owner's in it."""
    written(places.config)
    places.config.parent.chmod(0o700)
    assert access.wrong(places) == {}


@pytest.mark.parametrize(
    "others", [0o666, pytest.param(None, marks=pytest.mark.skipif(os.geteuid() != 0, reason="root gives files to others"))]
)
def test_an_entry_that_no_installation_wrote_is_never_made_roots(places: Places, others: int | None) -> None:
    """Whoever put it there would have their own allowlist in force."""
    Traces(places).directory(places.allowlist, mode=0o755, owner=(os.geteuid(), os.getegid()))
    Traces(places).file(places.allowlist / "sh.yaml", b"as it was")
    written(places.config)
    evil = written(places.allowlist / "evil.yaml")
    for one in (evil, places.allowlist / "sh.yaml"):
        one.chmod(others) if others else os.chown(one, 65534, 65534)
    before = evil.lstat()
    said = access.wrong(places)
    assert said[str(evil)] == f"{said[str(places.allowlist / 'sh.yaml')]}, {access.STRANGE}"
    assert access.mend(places, Traces(places)) == [str(places.allowlist / "sh.yaml")]
    assert evil.lstat() == before
    assert set(access.wrong(places)) == {str(evil)}


def test_whoever_has_a_file_open_cannot_change_it_once_it_was_mended(places: Places) -> None:
    written(places.config, mode=0o666)
    left = written(places.config.with_name(".node.yaml.new"))  # and not through what will become the file either
    with places.config.open("a") as one, left.open("a") as other:
        assert access.mend(places, Traces(places)) == [str(places.config)]
        one.write("evil: 1\n")
        other.write("evil: 1\n")
    assert places.config.read_text() == "as it was"
