"""A workspace that is lent to one task after another, as long as they leave nothing in it.

To make folders and log files for each task, and to remove them, costs more than most tasks. So a worker has one spare workspace, with
standard output and error open in it. It is moved to where the next task's is to be, and if that task wrote nothing, from there to the
place of the next one, or back where none follows.
"""

# ruff: noqa: PTH102, PTH104, PTH208 - as in attempt.py
import contextlib
import os
import shutil
import time

FOLDERS = ("input", "work", "output", "logs")
STREAMS = {"stdout.log": 1, "stderr.log": 2}
SETTLED_S = 0.05  # much longer than a tick of the clock by which a file system dates changes


class Place:
    """The spare one lies at `spare`, on the file system of all workspaces. A task that took `lasting_s` keeps its workspace, whatever is
    in it."""

    def __init__(self, spare: str, lasting_s: float) -> None:
        self.lasting_s = lasting_s
        self._spare = spare
        self._at = spare  # where it lies now
        self._files: dict[int, tuple[int, int]] | None = None  # which file each stream is; None: there is no spare workspace
        self._made: list[tuple[int, ...]] = []  # root and folders, each by device, number and mode
        self._seen: list[tuple[int, ...]] = []  # the same and when it was changed, as last looked at,
        self._seen_at = 0.0
        self._trusted: list[tuple[int, ...]] = []  # and as it is whenever nothing is in it
        self._root = self._work = -1

    def take(self, root: str) -> None:
        """Have a workspace at `root`, work in it, write into its logs. Raises OSError."""
        if self._files is None:
            self._make()
        os.rename(self._at, root)
        self._at = root
        os.fchdir(self._work)

    def give_back(self) -> bool:
        """Whether nothing was left in it; it goes to the next task then, or back by `park`, and else stays there for good."""
        files = self._files
        silent = files is not None and all(_is_empty(number, file) for number, file in files.items())
        if silent and self._is_bare():
            return True
        self.let_go()
        return False

    def park(self) -> None:
        """No task follows at once: it is the spare one again."""
        if self._files is not None and self._at != self._spare:
            try:
                os.rename(self._at, self._spare)
            except OSError:
                self.let_go()
            else:
                self._at = self._spare

    def let_go(self) -> None:
        """What is at the root of the last task stays there for good; nobody writes into its logs any more."""
        if self._files is not None:
            self._files = None
            self._at = self._spare
            os.close(self._work)
            os.close(self._root)
        for number in STREAMS.values():
            redirect(os.devnull, number)
        os.chdir("/")

    def rest(self) -> None:
        """Hold nothing on that disk, which somebody may want to unmount; the next task gets a new spare one."""
        if self._files is not None:
            self.park()
            self.let_go()
            with contextlib.suppress(OSError):
                shutil.rmtree(self._spare)

    def _make(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._spare)
        os.mkdir(self._spare, 0o700)
        for name in FOLDERS:
            os.mkdir(f"{self._spare}/{name}", 0o700)
        files = {}
        for name, number in STREAMS.items():
            redirect(f"{self._spare}/logs/{name}", number)
            files[number] = _identity(number)
        self._work = os.open(f"{self._spare}/work", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._root = os.open(self._spare, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._made, self._seen, self._trusted = [mark[:-1] for mark in self._marks()], [], []
        self._files = files

    def _marks(self) -> list[tuple[int, ...]]:
        """What a task may have changed of it, and when. The root is dated by its content, as it changes whenever it is moved."""
        root = os.lstat(self._at)
        marks: list[tuple[int, ...]] = [(root.st_dev, root.st_ino, root.st_mode, root.st_mtime_ns)]
        for name in FOLDERS:
            one = os.stat(name, dir_fd=self._root, follow_symlinks=False)
            marks.append((one.st_dev, one.st_ino, one.st_mode, one.st_ctime_ns))
        return marks

    def _is_bare(self) -> bool:
        """Whether it is as `_make` made it. Each change leaves a date, so what was found empty and has the same dates as then is empty,
        if those dates were older than a tick by then."""
        try:
            marks = self._marks()
            if marks == self._trusted:
                return True
            now = time.monotonic()
            if marks != self._seen:
                self._seen, self._seen_at = marks, now
            empty = (
                [mark[:-1] for mark in marks] == self._made
                and not any(os.listdir(f"{self._at}/{name}") for name in FOLDERS if name != "logs")
                and len(os.listdir(f"{self._at}/logs")) == len(STREAMS)
                and len(os.listdir(self._at)) == len(FOLDERS)
            )
        except OSError:
            return False
        if empty and now - self._seen_at > SETTLED_S:
            self._trusted = marks
        return empty


def redirect(path: str, number: int) -> None:
    """Have a stream written to the end of a file; never through a link."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if handle == number:  # the task had closed it
        os.set_inheritable(number, True)
    else:
        os.dup2(handle, number)
        os.close(handle)


def _identity(number: int) -> tuple[int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def _is_empty(number: int, file: tuple[int, int]) -> bool:
    """Whether this stream is still that file, and nothing was written."""
    try:
        status = os.fstat(number)
    except OSError:  # the task closed it
        return False
    return not status.st_size and (status.st_dev, status.st_ino) == file
