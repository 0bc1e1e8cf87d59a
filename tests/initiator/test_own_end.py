"""Our end of a session as a configuration file may have it: address, code point, priority, alias, depth."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio

from iscsifs.conffile.options import entry_of, initiator_options
from iscsifs.conffile.parser import parse
from iscsifs.conffile.writer import format_entry
from iscsifs.errors import TransportError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal
from iscsifs.service import open_initiator
from iscsifs.target.testing import TestTarget

NAME = "iqn.2001-04.com.example:initiator"
OPTIONS = InitiatorOptions(NAME)


@pytest.fixture
def target() -> Iterator[TestTarget]:
    with TestTarget(size=1 << 20) as running:
        yield running


@pytest.mark.conformance("CONF-1.13", "CONF-1.14")
async def test_the_connection_is_as_the_file_says(target: TestTarget) -> None:
    text = f"a {{ TargetAddress = h; TargetName = {target.name}; InitiatorAddress = 127.0.0.9; "
    text += "dscp = ef; pcp = 3 }"
    (entry,) = parse(text).entries
    async with open_initiator(initiator_options(entry, OPTIONS)) as initiator:
        managed = await initiator.login(target.name, [Portal(target.host, target.port)])
        sock = managed.session.link._socket
        assert sock.getsockname()[0] == "127.0.0.9"
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 46 << 2
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3


@pytest.mark.parametrize("address", ["192.0.2.77", "::1"])
async def test_an_address_that_is_not_ours_is_named(target: TestTarget, address: str) -> None:
    async with open_initiator(replace(OPTIONS, source_address=address)) as initiator:
        with pytest.raises(TransportError, match=f"{address}[:,]"):
            await initiator.login(target.name, [Portal(target.host, target.port)])


async def test_no_more_commands_are_on_the_wire_than_wanted(target: TestTarget) -> None:
    """And all are answered."""
    async with open_initiator(replace(OPTIONS, queue_depth=2)) as initiator:
        managed = await initiator.login(target.name, [Portal(target.host, target.port)])
        (unit,) = managed.units
        assert unit.storage is not None
        storage, connection = unit.storage, managed.session.link.connection
        seen = []

        async def read(block: int) -> None:
            await storage.read(block * 4096, 4096)
            seen.append(connection.tasks_on_the_wire)

        async def watch() -> None:
            while len(seen) < 40:
                assert connection.tasks_on_the_wire <= 2
                await trio.lowlevel.checkpoint()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                for block in range(40):
                    nursery.start_soon(read, block)
        assert max(seen) <= 2


async def test_the_alias_is_sent(target: TestTarget, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with open_initiator(replace(OPTIONS, alias="the backup host")) as initiator:
        await initiator.login(target.name, [Portal(target.host, target.port)])
    assert "InitiatorAlias=the backup host" in caplog.text


@pytest.mark.conformance("CONF-1.17")
def test_what_is_saved_has_all_of_it() -> None:
    options = replace(
        OPTIONS, alias="me", source_address="127.0.0.9", dscp=46, pcp=3, queue_depth=4, write_behind=False
    )
    (entry,) = parse("a { TargetAddress = h; SessionType = Discovery }").entries
    written = format_entry(entry_of("b", entry.address, None, options))
    (again,) = parse(written).entries
    assert initiator_options(again, OPTIONS) == options
