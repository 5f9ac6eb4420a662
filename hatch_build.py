"""Builds what is in C where a compiler is. Without it the keeper forks in Python, which takes a millisecond more for a start, and
sandboxes are made by bwrap, which takes three. A wheel also has the lock file of its libraries, from which releases for hosts are made.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE = Path("src/ostler/node")
# No library is linked into `_enter`, and the compiler must not make calls of one out of its loops.
ALONE = (
    "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns", "-fno-pie", "-no-pie",
    "-fno-asynchronous-unwind-tables", "-Wl,-z,noexecstack",
)  # fmt: skip
PROGRAMS = {
    NODE / "keeper/_spawn.so": (NODE / "keeper/_spawn.c", ("-shared", "-fPIC")),
    NODE / "sandbox/_enter": (NODE / "sandbox/_enter.c", ALONE),
}
LOCK, IN_WHEEL = "lock/release.txt", "ostler/fleet/releases/dependencies.txt"


class HelperHook(BuildHookInterface):
    """Compiles each source beside itself, for a wheel and for an editable install alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the build; `version` is standard, or editable."""
        if version == "standard":
            build_data["force_include"][LOCK] = IN_WHEEL
        named = shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, ("cc", "gcc", "clang")), "")]
        for target, (source, options) in PROGRAMS.items():
            if self.compiled([*named, "-O2", "-Wall", "-Wextra", *options], Path(self.root) / source, Path(self.root) / target):
                build_data["artifacts"].append(f"/{target}")
                build_data["pure_python"] = False
                platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["tag"] = f"py3-none-{platform}"

    def compiled(self, command: list[str], source: Path, target: Path) -> bool:
        """Whether the target is there now; it is not where the source does not compile."""
        fresh = target.with_name(f"{target.name}.new")  # what runs may have the old one mapped
        try:
            subprocess.run([*command, "-o", str(fresh), str(source)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            why = getattr(exc, "stderr", None) or exc
            self.app.display_warning(f"{source.name} was not built, and is done without ({command[0] or 'no cc'}): {why}")
            fresh.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            return False
        fresh.replace(target)
        return True
