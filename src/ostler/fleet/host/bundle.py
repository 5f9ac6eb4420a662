"""The host program as one file, and the argument list that has a host run it from memory."""

from importlib import resources

from ostler.fleet.host.packing import pack

_PACKAGE = "ostler.fleet.host"

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
    return pack({one.name: one.read_text() for one in resources.files(_PACKAGE).iterdir() if one.name.endswith(".py")})


def command(size: int, verb: str, *arguments: str) -> list[str]:
    """What is to be executed on the host, as root; the program's `size` bytes come first on its standard input. The verb `serve` carries
    out others, as they are asked for (`serving`)."""
    return ["/usr/bin/python3", "-I", "-c", LOADER, str(size), verb, *arguments]
