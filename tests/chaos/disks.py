"""Small file systems for a run: one for each place whose disk shall become full, run out of inodes or turn read-only."""

import os
import subprocess
import threading
from pathlib import Path


def can_mount() -> bool:
    """Whether this user may mount here."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


class Disk:
    """A tmpfs. It becomes full by being made as small as what lies on it, so that filling it costs no memory."""

    def __init__(self, place: Path, *, size_mb: int, inodes: int = 200_000) -> None:
        self.place, self.size, self.inodes = place, size_mb << 20, inodes
        self._lock = threading.Lock()  # another fault's remount must not take up a reason that is only being tried
        self._reasons = {"full": 0, "inodes": 0, "read_only": 0}

    def mount(self) -> None:
        """Make it."""
        self.place.mkdir(parents=True, exist_ok=True)
        options = f"size={self.size},nr_inodes={self.inodes},mode=0711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "ostler-chaos", self.place], check=True)

    def unmount(self) -> None:
        """Remove it, also while something still uses it."""
        subprocess.run(["umount", "-l", self.place], check=False, capture_output=True)

    def spoil(self, how: str) -> bool:
        """Make it `full`, without `inodes`, or `read_only`; False where the kernel would not, because a file is being written."""
        with self._lock:
            self._reasons[how] += 1
            if self._remount():
                return True
            self._reasons[how] -= 1
            return False

    def mend(self, how: str) -> None:
        """One reason less."""
        with self._lock:
            self._reasons[how] -= 1
            if not self._remount():
                raise RuntimeError(f"{self.place} cannot be mended")

    def _remount(self) -> bool:
        size, inodes = self.size, self.inodes
        found = os.statvfs(self.place)
        if self._reasons["full"]:
            size = max((found.f_blocks - found.f_bfree) * found.f_frsize, 1 << 16)
        if self._reasons["inodes"]:
            inodes = found.f_files - found.f_ffree
        mode = "ro" if self._reasons["read_only"] else "rw"
        for more in (0, 1, 4, 16):  # what was written between the look and the call
            options = f"remount,{mode},size={size + more * 65536},nr_inodes={inodes + more}"
            if subprocess.run(["mount", "-o", options, self.place], check=False, capture_output=True).returncode == 0:
                return True
        return False
