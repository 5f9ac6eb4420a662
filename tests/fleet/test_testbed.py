"""What the tests of fleets stand on: the hosts are machines with a service manager whose limits hold."""

import asyncio

import asyncssh
import pytest

pytestmark = [pytest.mark.xdist_group("testbed"), pytest.mark.timeout(300, func_only=True)]  # the first one may wait for images
EAT = "x = bytearray(200 << 20)"


async def test_every_host_is_up_under_its_own_name_and_verified_key(testbed):
    async def state(host):
        async with host.ssh() as line:
            done = await line.run("hostname; systemctl is-system-running --wait; sudo id -u; python3 -V", check=True)
        return done.stdout.split()

    found = await asyncio.gather(*map(state, testbed.hosts.values()))
    assert [(name, running, root) for name, running, root, *_ in found] == [(name, "running", "0") for name in testbed.hosts]
    assert len({version for *_, version in found}) == (1 if testbed.no_newer else 2)


async def test_the_limits_of_units_are_enforced(testbed):
    for host in (testbed.hosts["mini-1"], list(testbed.hosts.values())[-1]):
        async with host.ssh() as line:

            async def unit(properties, command, line=line):
                return (await line.run(f"sudo systemd-run --wait --quiet {properties} {command}")).exit_status

            assert await unit("-p MemoryMax=50M -p MemorySwapMax=0", f"python3 -c '{EAT}'") != 0
            assert await unit("-p MemoryMax=500M -p MemorySwapMax=0", f"python3 -c '{EAT}'") == 0
            assert await unit("-p ProtectSystem=strict -p PrivateTmp=yes -p PrivateDevices=yes", "touch /etc/written") != 0
            assert await unit("-p TasksMax=2", "sh -c 'true & true & true & true & wait'") != 0


async def test_one_user_has_no_sudo_and_a_stranger_no_way_in(host):
    async with host.ssh("plain") as line:
        assert (await line.run("sudo -n true")).exit_status != 0
    with pytest.raises(asyncssh.PermissionDenied):
        async with asyncssh.connect(
            host.address, username="root", client_keys=None, agent_path=None, config=None, known_hosts=None
        ):
            pass


async def answers(host):
    try:
        async with asyncssh.connect(host.address, known_hosts=None, config=None, connect_timeout=1, login_timeout=1):
            return True
    except asyncssh.PermissionDenied:
        return True
    except (OSError, asyncssh.Error):
        return False


async def test_a_host_survives_its_power_and_loses_it(testbed):
    host = testbed.hosts["mini-2"]
    before = host.boot_id()
    host.exec("touch", "/root/kept")
    host.kill()
    assert not await answers(host)
    host.start()
    after = host.boot_id()
    host.reboot()
    assert len({before, after, host.boot_id()}) == 3
    assert host.exec("ls", "/root").stdout == "kept\n"
    host.replace()
    assert host.exec("ls", "/root").stdout == ""
    async with host.ssh() as line:
        assert (await line.run("true")).exit_status == 0


async def test_a_pulled_cable_and_a_host_that_hangs(host):
    for off, on in ((host.disconnect, host.connect), (host.pause, host.unpause)):
        off()
        assert not await answers(host)
        on()
        async with host.ssh() as line:
            assert (await line.run("true")).exit_status == 0
