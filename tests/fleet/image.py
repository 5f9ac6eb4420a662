"""The root file systems of the hosts: made by mmdebstrap from this machine's own package sources, kept under ~/.cache/ostler."""

import hashlib
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from .engine import CACHE, Unable, alone, podman, settings

PACKAGES = (
    "systemd,systemd-sysv,dbus,libpam-systemd,polkitd,openssh-server,sudo,python3,python3-venv,iproute2,procps,kmod,"
    "cloud-init,nftables,bubblewrap"
)
SETUP = Path(__file__).with_name("image-setup.sh")
NEWER = {"bookworm": "trixie"}  # the release whose Python is another one, by the machine's own
APT = Path("/etc/apt")
BUILD_S = 1500


def own_release() -> str:
    """The code name of the system that this machine runs."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "")


def newer_release() -> str:
    """The code name of the next one. Raises Unable."""
    if (found := NEWER.get(own_release())) is None:
        raise Unable(f"no release newer than {own_release()} is known, so that no host can have another Python")
    return found


def image(release: str) -> str:
    """The name of the image, which is made or taken from the cache first. Raises Unable."""
    sources, options = _sources(release), _options()
    made_from = (release, PACKAGES, SETUP.read_text(), *sources.values(), options)
    name = f"{release}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]}"
    tag = f"localhost/ostler-testbed:{name}"
    with alone(f"image-{release}"):
        if podman("image", "exists", tag, check=False).returncode == 0:
            return tag
        packed = CACHE / f"{name}.tar.zst"
        if not packed.exists():
            _build(release, sources, options, packed)
        with subprocess.Popen(["zstd", "-dc", packed], stdout=subprocess.PIPE) as unpack:
            subprocess.run(["podman", "import", "-", tag], stdin=unpack.stdout, env=settings(), capture_output=True, check=True)
        if unpack.returncode:
            podman("rmi", tag)
            raise Unable(f"{packed} is damaged: remove it and try again")
    return tag


def _sources(release: str) -> dict[str, str]:
    """This machine's package sources of its own release, by kind of file, with another release's name where that is asked for."""
    own = own_release()
    lists = [path for path in (APT / "sources.list", *sorted((APT / "sources.list.d").glob("*.list"))) if path.exists()]
    lines = [line for path in lists for line in path.read_text().splitlines() if line.startswith("deb ") and f" {own}" in line]
    blocks = [
        block
        for path in sorted((APT / "sources.list.d").glob("*.sources"))
        for block in path.read_text().split("\n\n")
        if any(line.startswith("Suites:") and own in line for line in block.splitlines())
    ]
    kinds = {".list": "\n".join(lines), ".sources": "\n\n".join(block.strip() for block in blocks)}
    if not own or not any(kinds.values()):
        raise Unable(f"this machine has no package sources of its own release under {APT}, of which hosts could be made")
    return {kind: text.replace(own, release) + "\n" for kind, text in kinds.items() if text}


def _options() -> str:
    """How this machine's apt reaches its sources (proxies, dates)."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    return "".join(f"{line}\n" for line in dump.splitlines() if not line.endswith('"";'))


def _build(release: str, sources: dict[str, str], options: str, packed: Path) -> None:
    print(f"==> making the image of {release} hosts (once; kept in {CACHE})", flush=True)
    began = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ostler-image-", dir=memory) as scratch:
        folder = Path(scratch)
        for kind, text in sources.items():
            (folder / f"sources{kind}").write_text(text)
        (folder / "apt.conf").write_text(options)
        command = [
            "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={PACKAGES}", f"--aptopt={folder}/apt.conf",
            "--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", f'--customize-hook="{SETUP}" "$1"', release, str(folder / "root.tar"),
            *(str(folder / f"sources{kind}") for kind in sources),
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TMPDIR": scratch}, timeout=BUILD_S, check=False
        )
        if done.returncode:
            raise Unable(f"no image of {release} could be made: " + " | ".join(done.stderr.strip().splitlines()[-4:]))
        half = packed.with_suffix(".half")
        subprocess.run(["zstd", "-q", "-f", str(folder / "root.tar"), "-o", str(half)], check=True)
        half.replace(packed)
    print(f"==> made in {time.monotonic() - began:.0f} s, {packed.stat().st_size >> 20} MiB packed", flush=True)
