"""Whatever a file holds, it is read or refused: without a crash, in time and memory that its size explains."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ostler.fleet.inventory.load import Sources, load
from ostler.model.errors import Rejected

FORMS = ("fleet.yml", "deploy.yml", "tree.yaml", "hosts", "hosts.ini", "printed.json", "config")

KEYS = [
    "hosts",
    "groups",
    "servers",
    "web",
    "all",
    "children",
    "vars",
    "ssh",
    "user",
    "port",
    "proxy",
    "labels",
    "accessories",
    "_meta",
]
VALUES = ["ansible_host", "ansible_ssh_common_args", "hostvars", "a", "b[1:3]", "c[a:z]", "u@h:22", "-x", "$(id)", "10.0.0.1", "::1", "*a",
          "&a", "<<", "%h", "'", '"', "true", "null", "1e999", "2020-01-01", "|", ">"]  # fmt: skip
LINES = ["{{ x }}", "!vault x", "!!binary aa==", "? [a]", "<%= ENV['A'] %>", "<% x %>", "[web]", "[web:children]", "[all:vars]", "Host *",
         "Match exec id", "Include *", "ProxyJump a,b", "\x00", "\ufeff", "é", "9" * 30]  # fmt: skip
GLUE = [" ", "\n", ": ", "=", "\n  ", "\n    ", "\n- ", ", ", "[", "]", "{", "}", "\t", "#", "\n---\n", "\r\n"]
SCRAPS = st.lists(st.sampled_from([*KEYS, *VALUES, *LINES, *GLUE, *GLUE]), max_size=40).map("".join)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(SCRAPS, st.text(max_size=200)))
@example(text="a=\\")
@example(text="[all:vars]\nx=[[[[\n")
def test_any_text_is_read_or_refused(tmp_path: Path, form: str, text: str) -> None:
    file = tmp_path / form
    file.write_bytes(text.encode(errors="surrogatepass"))
    sources = Sources(inventories=[str(file)], ssh_config=file, home=tmp_path, local_user="me", env={"A": "b"}, accessories=True)
    try:
        found = load(sources)
    except Rejected:
        return
    for host in found.hosts:
        assert host.origin["name"]
        words = [host.name, host.address, *host.groups, *(one.address for one in host.proxy_jump)]
        words += [one for one in (host.user, host.pool, host.region, *(one.user for one in host.proxy_jump)) if one is not None]
        assert not [word for word in words if word.startswith("-") or shlex.quote(word) != word]


def doubled(name: str, separator: str) -> str:
    """Nine times what stands before, nine times over, under `name`."""
    text = f"{name}0: &{name}0{separator}[x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 9):
        text += f"{name}{i}: &{name}{i} [{', '.join([f'*{name}{i - 1}'] * 9)}]\n"
    return text


BOMBS = {
    "aliases.yml": doubled("a", " ") + "hosts: *a8\n",
    "kamal/deploy.yml": "service: a\n" + doubled("x-a", " ") + "servers: *x-a8\n",
    "merges.yml": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 200))
    + "hosts: {}\n",
    "deep.yml": "hosts: " + "[" * 60_000,
    "deep.json": '{"hosts": ' + "[" * 60_000 + "]" * 60_000 + "}",
    "block.yml": "".join(" " * i + "a:\n" for i in range(1000)),
    "large.yml": "hosts: [" + "a, " * 4_000_000 + "a]",
    "large.ini": "h\n" * 5_000_000,
    "ranges.ini": "[g]\n" + "".join(f"h{i}-[0001:9999]\n" for i in range(3000)),
    "product.ini": "h[1:9999]-[1:9999]-[1:9999]\n",
    "chain.ini": "".join(f"[g{i}:children]\ng{i + 1}\n" for i in range(8000)) + "[g8000]\nh[1:5000]\n",
    "ring.ini": "".join(f"[g{i}:children]\ng{(i + 1) % 3000}\n" for i in range(3000)) + "[g0]\nh\n",
    "mesh.ini": "".join(f"[g{i}:children]\n" + "".join(f"g{j}\n" for j in range(i + 1, 99)) for i in range(98))
    + "[g98]\nh[1:99]\n",
    "erb/deploy.yml": "service: a\nservers:\n" + "<%= ENV['A'] %>" * 200_000,
    "open/deploy.yml": "<%" * 2_000_000,
    "quotes.ini": "h " + "'" * 1_000_001 + "\n",
    "literal.ini": "h x=" + "(" * 900 + "\n[g:vars]\ny=" + "-" * 900 + "1\n[g]\nh\n",
    "wide/config": "Host " + "*a" * 50_000 + "b\n  User x\nHost a\n" + "  IdentityFile /k\n" * 5000,
    "many/config": "".join(f"Host h{i}\n  Port {i + 1}\n" for i in range(10_000)),
    "wild/config": "".join(f"Host h{i} *x\n  Port {i + 1}\n" for i in range(9000)),
    "hosts.yml": "hosts: [" + "".join(f"h{i}, " for i in range(20_001)) + "]\n",
    "wrong.yml": "hosts:\n" + "".join(f"  'h {i}':\n" for i in range(9000)),
    "lines/hosts": "\n" * 1_000_000,
    "spaces/hosts": "Host" + " " * 1_000_000 + "=",
    "numbers.yml": "hosts: {a: {vars: {x: " + "9" * 100_000 + "}}}\n",
}
PROGRAM = """
import resource, sys
from pathlib import Path
from ostler.fleet.inventory.load import Sources, load
from ostler.model.errors import Rejected
resource.setrlimit(resource.RLIMIT_AS, (900 * 2**20,) * 2)
def cpu():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
for name in sys.argv[1:]:
    began = cpu()
    resource.setrlimit(resource.RLIMIT_CPU, (int(began) + 20, -1))
    print(name, end=" ", flush=True)
    try:
        said = f"{len(load(Sources(inventories=[name], home=Path('/nowhere'), local_user='me', env={'A': 'a' * 100_000})).hosts)} hosts"
    except Rejected as exc:
        said = str(exc)[:150].replace(chr(10), " ")
    print(f"{cpu() - began:.1f}s: {said}", flush=True)
"""


def test_bombs(tmp_path: Path) -> None:
    """Twenty seconds of CPU for each, and 900 MB of addresses for all."""
    for name, text in BOMBS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in BOMBS]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *files], capture_output=True, text=True, check=False)
    said = {line.partition(" ")[0]: line for line in done.stdout.splitlines() if "s: " in line}
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert list(said) == files
    for name, part in {
        "aliases.yml": "more than 500000 values",
        "ranges.ini": "more than 20000 hosts",
        "chain.ini": "500000 times",
        "large.ini": "is larger than",
        "many/config": "10000 hosts",
        "wild/config": "too many blocks",
        "ring.ini": "contains itself",
    }.items():
        assert part in said[str(tmp_path / name)]
