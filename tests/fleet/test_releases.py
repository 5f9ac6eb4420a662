"""A release on bare hosts of two Debians: no pip, no compiler, no package registry, nothing but the system's Python."""

import asyncio
import json
import os
import shlex

import pytest

from ostler.fleet.host.bundle import command, program
from ostler.fleet.releases.dependencies import Platform
from ostler.fleet.releases.store import for_platform
from release_rig import make

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(300, func_only=True)]
PROGRAM = program()


async def host_program(line, verb, *args, data=b""):
    argv = shlex.join(["sudo", "-n", *command(len(PROGRAM), verb, *args)])
    done = await line.run(argv, input=PROGRAM + data, encoding=None)
    return json.loads(done.stdout)


async def test_a_bare_host_gets_a_release_that_runs(testbed, release):
    async def one(host, platform):
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

    first, *_, last = testbed.hosts.values()
    wanted = [(first, release.manifest.platforms[0])]
    if not testbed.no_newer:
        wanted.append((last, release.manifest.platforms[1]))
    await asyncio.gather(*(one(*each) for each in wanted))
    for host, _ in wanted:
        host.replace()


async def test_a_host_that_loses_its_power_in_the_middle_installs_again(testbed, release_keys, tmp_path):
    host = testbed.hosts["mini-2"]
    platform = Platform(11, os.uname().machine)
    small = make(tmp_path, release_keys, platforms=(platform,), more={"ostler/large": os.urandom(8 << 20)})
    data = small.bundle.read_bytes()
    argv = shlex.join(["sudo", "-n", *command(len(PROGRAM), "install", "--digest", small.manifest.digest)])
    async with host.ssh() as line:
        process = await line.create_process(argv, encoding=None)
        process.stdin.write(PROGRAM + data[: len(data) // 2])
        await line.run("until ls -d /opt/ostler/releases/*.partial/wheels >/dev/null 2>&1; do :; done", check=True, timeout=60)
        host.kill()
    host.start()
    async with host.ssh() as line:
        assert (await host_program(line, "facts"))["releases"] == []
        answer = await host_program(line, "install", "--digest", small.manifest.digest, data=data)
        assert answer["release"] == small.release
        assert (await line.run("ls /opt/ostler/releases", check=True)).stdout.split() == [small.release]
    host.replace()
