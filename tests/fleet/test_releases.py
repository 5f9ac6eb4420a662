"""A release on bare hosts of two Debians: no pip, no compiler, no package registry, nothing but the system's Python."""

import json
import os
import shlex

import pytest

from fleet import image
from fleet.engine import Unable
from fleet.rig import here
from ostler.fleet.host.bundle import command, program
from ostler.fleet.releases.dependencies import Platform
from ostler.fleet.releases.keys import open_keys
from ostler.fleet.releases.store import for_platform
from release_rig import make

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("testbed"), pytest.mark.timeout(300, func_only=True)]
PROGRAM = program()


async def host_program(line, verb, *args, data=b""):
    argv = shlex.join(["sudo", "-n", *command(len(PROGRAM), verb, *args)])
    done = await line.run(argv, input=PROGRAM + data, encoding=None)
    return json.loads(done.stdout)


@pytest.fixture
def newer(testbed):
    """A bare host with another Python."""
    try:
        one = testbed.add("newer", newer=True)
    except Unable as exc:
        pytest.skip(str(exc))
    yield one
    testbed.remove(one)


async def gets_one_that_runs(host, release, platform):
    async with host.ssh() as line:
        answer = await host_program(
            line, "install", "--digest", release.manifest.digest, data=for_platform(release.bundle, platform)
        )
        assert answer == {"release": release.release, "version": release.manifest.version, "was_there": False}
        home = f"/opt/ostler/releases/{release.release}"
        said = await line.run(f"{home}/bin/ostler version --json", check=True)
        assert json.loads(said.stdout)["client"]["version"] == release.manifest.version
        probe = await line.run(f"{home}/bin/ostler node probe", check=True)
        assert "sandbox" in probe.stdout
        helpers = "print(spawn.__file__); import ctypes; ctypes.CDLL(str(spawn.__file__).replace('spawn.py', '_spawn.so'))"
        await line.run(f'{home}/bin/python -I -c "from ostler.node.keeper import spawn; {helpers}"', check=True)
        units = await line.run(f"systemd-analyze verify {home}/units/ostler-keeper.service")
        assert "Unknown" not in units.stderr
        facts = await host_program(line, "facts")
        assert facts["releases"] == [release.release]
        again = await host_program(line, "install", data=for_platform(release.bundle, platform))
        assert again["was_there"]


async def test_a_bare_host_gets_a_release_that_runs(bare, release):
    await gets_one_that_runs(bare, release, here(11))


async def test_a_bare_host_with_another_python_does(newer, operator, release):
    if here(13) not in release.manifest.platforms:
        pytest.skip(f"the release is for one Python alone: TESTBED_HOSTS=4 makes one for that of {image.newer_release()} too")
    await gets_one_that_runs(newer, release, here(13))


async def test_a_host_that_loses_its_power_in_the_middle_installs_again(bare, tmp_path):
    platform = Platform(11, os.uname().machine)
    keys = open_keys(tmp_path / "keys").with_new()
    small = make(tmp_path, keys, platforms=(platform,), more={"ostler/large": os.urandom(8 << 20)})
    data = small.bundle.read_bytes()
    argv = shlex.join(["sudo", "-n", *command(len(PROGRAM), "install", "--digest", small.manifest.digest)])
    async with bare.ssh() as line:
        process = await line.create_process(argv, encoding=None)
        process.stdin.write(PROGRAM + data[: len(data) // 2])
        await line.run("until ls -d /opt/ostler/releases/*.partial/wheels >/dev/null 2>&1; do :; done", check=True, timeout=60)
        bare.kill()
    bare.start()
    async with bare.ssh() as line:
        assert (await host_program(line, "facts"))["releases"] == []
        answer = await host_program(line, "install", "--digest", small.manifest.digest, data=data)
        assert answer["release"] == small.release
        assert (await line.run("ls /opt/ostler/releases", check=True)).stdout.split() == [small.release]
