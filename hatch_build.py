"""Builds the keeper's helper in C where a compiler is; without it the keeper forks in Python, and a start takes a millisecond more."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/ostler/node/keeper")


class HelperHook(BuildHookInterface):
    """Compiles `_spawn.c` beside itself, for a wheel and for an editable install alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the build."""
        source, target = (Path(self.root) / FOLDER / f"_spawn.{kind}" for kind in ("c", "so"))
        named = shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, ("cc", "gcc", "clang")), "")]
        fresh = target.with_suffix(".so.new")  # a keeper that runs may have the old one mapped
        command = [*named, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(fresh), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            why = getattr(exc, "stderr", None) or exc
            self.app.display_warning(
                f"{source.name} was not built, the keeper will fork instead ({command[0] or 'no cc'}): {why}"
            )
            fresh.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            return
        fresh.replace(target)
        build_data["artifacts"].append(f"/{FOLDER}/{target.name}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
