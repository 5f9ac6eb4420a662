"""Two sweep below the workspaces' root when a daemon starts: for the workers, and for the node's own spares."""

from types import SimpleNamespace

from ostler.node import trees
from ostler.node.runners.workers import WorkerPool
from ostler.node.spares import Spares
from ostler.node.workspace import FOLDERS, NODES_SPARE, SPARE


def places(tmp_path):
    root, folder = tmp_path / "jobs", tmp_path / "workers"
    root.mkdir()
    folder.mkdir()
    return root, SimpleNamespace(_workers={}, _dead={}, _folder=folder, _root=root, _put_aside=None)


def left_behind(root, name):
    for one in FOLDERS:
        (root / name / one).mkdir(parents=True)


def test_each_sweeps_its_own(tmp_path):
    root, pool = places(tmp_path)
    left_behind(root, f"{SPARE}0a1b")
    left_behind(root, f"{NODES_SPARE}1")
    WorkerPool._sweep(pool)
    assert [path.name for path in root.iterdir()] == [f"{NODES_SPARE}1"]
    Spares(root)._sweep()
    assert list(root.iterdir()) == []


def test_what_is_taken_meanwhile_is_nobodys_to_sweep(tmp_path):
    root, pool = places(tmp_path)
    spares = Spares(root)
    spares._sweep()
    spares.have_one()
    WorkerPool._sweep(pool)
    taken = spares.take("job", 1)
    assert sorted(path.name for path in taken.path.iterdir()) == sorted(FOLDERS)


def test_what_somebody_else_has_removed_is_no_reason_to_fail(tmp_path, monkeypatch):
    root, pool = places(tmp_path)
    left_behind(root, f"{SPARE}0a1b")
    run = trees._Removal.run

    def racing(self):
        kept = run(self)
        (root / f"{SPARE}0a1b").rmdir()
        return kept

    monkeypatch.setattr(trees._Removal, "run", racing)
    WorkerPool._sweep(pool)
    assert list(root.iterdir()) == []
