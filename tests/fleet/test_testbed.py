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
    assert len({version for *_, version in found}) == len({host.release for host in testbed.hosts.values()})


async def test_the_limits_of_units_are_enforced(testbed):
    async def holds(host):
        async with host.ssh() as line:

            async def unit(properties, command):
                return (await line.run(f"sudo systemd-run --wait --quiet {properties} {command}")).exit_status

            assert await unit("-p MemoryMax=50M -p MemorySwapMax=0", f"python3 -c '{EAT}'") != 0
            assert await unit("-p MemoryMax=500M -p MemorySwapMax=0", f"python3 -c '{EAT}'") == 0
            assert await unit("-p ProtectSystem=strict -p PrivateTmp=yes -p PrivateDevices=yes", "touch /etc/written") != 0
            assert await unit("-p TasksMax=2", "sh -c 'true & true & true & true & wait'") != 0

    await asyncio.gather(*(holds(host) for host in {one.release: one for one in testbed.hosts.values()}.values()))


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


@pytest.mark.long
async def test_a_host_survives_its_power_and_loses_it(bare):
    before = bare.boot_id()
    bare.exec("touch", "/root/kept")
    bare.kill()
    assert not await answers(bare)
    bare.start()
    after = bare.boot_id()
    bare.reboot()
    assert len({before, after, bare.boot_id()}) == 3
    assert bare.exec("ls", "/root").stdout == "kept\n"
    bare.replace()
    assert bare.exec("ls", "/root").stdout == ""
    async with bare.ssh() as line:
        assert (await line.run("true")).exit_status == 0


@pytest.mark.long
async def test_a_pulled_cable_and_a_host_that_hangs(bare):
    for off, on in ((bare.disconnect, bare.connect), (bare.pause, bare.unpause)):
        off()
        assert not await answers(bare)
        on()
        async with bare.ssh() as line:
            assert (await line.run("true")).exit_status == 0
