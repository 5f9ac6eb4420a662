"""The application's wheel out of what is installed, for operators who have no checkout."""

import importlib.metadata
import subprocess
import sys
import zipfile

import pytest

from ostler.fleet.releases.application import _packed, commit_of, members
from ostler.model.errors import InvalidSpec
from release_rig import wheel


def install(made, place):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place), str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return importlib.metadata.Distribution.at(place / "ostler-1.0.dist-info")


@pytest.fixture
def installed(tmp_path):
    """As pip leaves a wheel behind: with a record, byte code, a command, and notes of its own."""
    made = tmp_path / "ostler-1.0-py3-none-any.whl"
    made.write_bytes(wheel("1.0"))
    return install(made, tmp_path / "site")


def test_what_is_installed_is_packed_again_the_same_each_time(installed, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = _packed(installed, tmp_path / "one"), _packed(installed, tmp_path / "two")
    assert one.name == "ostler-1.0-py3-none-any.whl"
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        names = archive.namelist()
        assert "ostler/assembly/trial.py" in names
        assert not [name for name in names if name.endswith((".pyc", "INSTALLER", "REQUESTED")) or name.startswith("bin/")]
        assert archive.read("ostler-1.0.dist-info/RECORD").decode().splitlines()[-1] == "ostler-1.0.dist-info/RECORD,,"
    assert install(one, tmp_path / "again").version == "1.0"


def test_what_was_changed_after_it_was_installed_is_refused(installed, tmp_path):
    installed.locate_file("ostler/__init__.py").write_text("__version__ = '1.0'  # changed\n")
    with pytest.raises(InvalidSpec, match="is not as it was installed"):
        _packed(installed, tmp_path)


def test_the_files_of_one_folder_of_a_wheel(tmp_path):
    made = tmp_path / "ostler-1.0-py3-none-any.whl"
    made.write_bytes(
        wheel("1.0", more={"ostler/units/a.service": b"a", "ostler/units/x/b.service": b"b", "ostler/units/c.py": b""})
    )
    assert members(made, "ostler/units") == {"a.service": b"a"}


def test_a_commit_is_what_git_says(tmp_path):
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a").write_text("a")
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "a"], check=True)
    head = commit_of(tmp_path)
    assert len(head) == 40
    (tmp_path / "src" / "a").write_text("b")
    assert commit_of(tmp_path) == f"{head}+changed"
