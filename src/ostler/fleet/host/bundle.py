"""The host program as one file, and the argument list that has a host run it from memory."""

import io
import zipfile
from importlib import resources

_PACKAGE = "ostler.fleet.host"
_MAIN = "import sys\nfrom ostler.fleet.host.program import main\nsys.exit(main(sys.argv[1:]))\n"
_NOT_THERE = {"bundle.py"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same program

# What a host is asked to execute: it reads the program, whose length is the first argument, from standard input into a file that exists
# in memory alone, and runs it with the other arguments. What follows on standard input is the verb's.
LOADER = (
    "import os,runpy,sys\n"
    "n=int(sys.argv[1]);d=os.memfd_create('ostler-host')\n"
    "b=b''\n"
    "while len(b)<n:\n"
    " c=os.read(0,n-len(b))\n"
    " if not c:sys.exit('the connection ended')\n"
    " b+=c\n"
    "os.write(d,b);p='/proc/self/fd/%d'%d\n"
    "sys.argv=[p,*sys.argv[2:]];runpy.run_path(p,run_name='__main__')\n"
)


def program() -> bytes:
    """The host program: a zip file that Python executes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(_files().items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def command(size: int, verb: str, *arguments: str) -> list[str]:
    """What is to be executed on the host, as root; the program's `size` bytes come first on its standard input."""
    return ["/usr/bin/python3", "-I", "-c", LOADER, str(size), verb, *arguments]


def _files() -> dict[str, str]:
    files = {"__main__.py": _MAIN, "ostler/__init__.py": "", "ostler/fleet/__init__.py": ""}
    for one in resources.files(_PACKAGE).iterdir():
        if one.name.endswith(".py") and one.name not in _NOT_THERE:
            files[f"ostler/fleet/host/{one.name}"] = one.read_text()
    return files
