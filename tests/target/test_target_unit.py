"""The device server in memory: every command, what is refused, and what goes wrong on purpose."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ConfigError
from iscsifs.limits import MAX_TRANSFER
from iscsifs.scsi import cdb as commands
from iscsifs.scsi import mode, vpd
from iscsifs.scsi.capacity import Capacity
from iscsifs.scsi.inquiry import DeviceType, InquiryData
from iscsifs.scsi.luns import lun_from_number, parse_luns
from iscsifs.scsi.sense import Sense, SenseKey
from iscsifs.scsi.status import Status
from iscsifs.target import unit as units
from iscsifs.target.block import Cd
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.store import Store
from iscsifs.target.unit import Fault, Identity, LogicalUnit, Nexus
from support import cdbs
from support.memory_client import BLOCK, BLOCKS, NAME, READS, WRITES, Client, block, make_disk


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = make_disk(droppable=True)
    yield disk
    disk.close()


@pytest.fixture
def client(disk: Disk) -> Client:
    return Client(disk)


# Who it is.


def test_inquiry_tells_type_and_names(client: Client) -> None:
    answer = InquiryData.parse(client.good(commands.inquiry(255)))
    assert answer.device_type is DeviceType.DISK
    assert answer.connected
    assert (answer.vendor, answer.product, answer.revision) == ("iscsifs", "disk", "1")
    assert len(client.good(commands.inquiry(5))) == 5


def test_inquiry_lists_the_pages_that_it_has(client: Client) -> None:
    pages = vpd.parse_supported_pages(client.good(commands.inquiry(255, 0x00)))
    assert pages == {0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2}
    for page in pages:
        assert client.good(commands.inquiry(255, page))[1] == page
    assert client.sense(commands.inquiry(255, 0xB3)) == units.INVALID_FIELD_IN_CDB
    assert client.sense(bytes((0x12, 0, 0x80, 0, 255, 0))) == units.INVALID_FIELD_IN_CDB


def test_serial_and_names_are_those_of_the_identity(client: Client) -> None:
    assert vpd.parse_serial(client.good(commands.inquiry(255, 0x80))) == "S123"
    names = vpd.parse_designators(client.good(commands.inquiry(255, 0x83)))
    assert names[0].value == b"iscsifs S123"
    name = vpd.wwid(names)
    assert name is not None
    assert name.startswith("naa.3")
    other = Client(Disk.in_memory(BLOCK, "S124"))
    assert vpd.wwid(vpd.parse_designators(other.good(commands.inquiry(255, 0x83)))) != vpd.wwid(names)


def test_designators_can_be_given() -> None:
    naa = vpd.Designator(vpd.DesignatorType.NAA, vpd.CodeSet.BINARY, bytes.fromhex("6" + "01" * 15 + "0"))
    client = Client(Disk(Store.memory(BLOCK), Identity("S", designators=(naa,))))
    assert vpd.parse_designators(client.good(commands.inquiry(255, 0x83))) == (naa,)


def test_block_limits_and_provisioning_say_what_the_disk_can_do(client: Client) -> None:
    limits = vpd.BlockLimits.parse(client.good(commands.inquiry(255, 0xB0)))
    assert limits.max_transfer_length == MAX_TRANSFER // BLOCK
    assert limits.write_same_non_zero
    assert limits.max_unmap_blocks == 0xFFFFFFFF
    assert limits.unmap_granularity == 8
    provisioning = vpd.Provisioning.parse(client.good(commands.inquiry(255, 0xB2)))
    assert provisioning.lbpu
    assert provisioning.lbpws
    assert provisioning.lbprz


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096, 65536])
def test_capacity_is_that_of_the_store(block_size: int) -> None:
    client = Client(make_disk(block_size=block_size))
    small = Capacity.parse_10(client.good(commands.read_capacity_10()))
    large = Capacity.parse_16(client.good(commands.read_capacity_16()))
    assert small is not None
    assert (small.blocks, small.block_size) == (BLOCKS, block_size)
    assert (large.blocks, large.block_size) == (BLOCKS, block_size)
    assert large.physical_block_size == max(block_size, 4096)
    assert large.lbpme
    assert large.lbprz
    assert len(client.good(commands.read_capacity_16(12))) == 12


def test_more_than_2_32_blocks_are_told_by_read_capacity_16_only() -> None:
    client = Client(Disk.in_memory((1 << 33) * BLOCK, "big"))
    assert Capacity.parse_10(client.good(commands.read_capacity_10())) is None
    assert Capacity.parse_16(client.good(commands.read_capacity_16())).blocks == 1 << 33
    client.good(commands.write_16((1 << 33) - 1, 1), block(7))
    assert client.good(commands.read_16((1 << 33) - 1, 1)) == block(7)


def test_part_of_a_block_at_the_end_is_not_shown() -> None:
    client = Client(Disk.in_memory(3 * BLOCK + 100, "odd"))
    assert Capacity.parse_16(client.good(commands.read_capacity_16())).blocks == 3


def test_a_disk_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="disk S: blocks of 1000 bytes"):
        Disk.in_memory(1 << 20, "S", block_size=1000)
    with pytest.raises(ConfigError, match="disk S: a unit without blocks"):
        Disk.in_memory(511, "S")


@pytest.mark.parametrize("build", [commands.mode_sense_6, cdbs.mode_sense_10])
def test_mode_pages_tell_the_cache_and_the_write_protection(build: Any) -> None:
    parse = mode.parse_6 if build is commands.mode_sense_6 else mode.parse_10
    for write_cache in False, True:
        for read_only in False, True:
            client = Client(make_disk(write_cache=write_cache, read_only=read_only))
            answer = parse(client.good(build(mode.CACHING_PAGE)))
            assert answer.caching == mode.Caching(wce=write_cache)
            assert answer.write_protected is read_only
            assert answer.dpo_fua
            assert parse(client.good(build(mode.ALL_PAGES))).pages.keys() == {(0x08, 0), (0x0A, 0)}


def test_mode_pages_that_are_not_there(client: Client) -> None:
    assert client.sense(commands.mode_sense_6(0x1C)) == units.INVALID_FIELD_IN_CDB
    assert client.sense(commands.mode_sense_6(0x08, 0x01)) == units.INVALID_FIELD_IN_CDB
    saved = bytes((0x1A, 0x08, 0xC0 | 0x08, 0, 255, 0))
    assert client.sense(saved) == units.SAVING_NOT_SUPPORTED
    changeable = mode.parse_6(client.good(bytes((0x1A, 0x08, 0x40 | 0x08, 0, 255, 0))))
    assert changeable.pages[(0x08, 0)] == b"\x04".ljust(18, b"\0")


# Reading and writing.


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("read", READS)
def test_what_is_written_is_read(client: Client, read: str, write: str) -> None:
    data = block(1, 3)
    assert client.good(WRITES[write](5, 3), data) == b""
    assert client.good(READS[read](4, 5)) == bytes(BLOCK) + data + bytes(BLOCK)


def test_read_6_of_0_blocks_are_256(client: Client) -> None:
    assert len(client.good(READS["6"](0, 0))) == 256 * BLOCK


@pytest.mark.parametrize("size", ["10", "12", "16"])
def test_no_blocks_are_no_error(client: Client, size: str) -> None:
    assert client.good(READS[size](0, 0)) == b""
    assert client.good(WRITES[size](0, 0)) == b""


@pytest.mark.parametrize("size", ["6", "10", "12", "16"])
@pytest.mark.parametrize("lba", [BLOCKS - 1, BLOCKS, BLOCKS + 1])
def test_beyond_the_end(client: Client, size: str, lba: int) -> None:
    assert client.sense(READS[size](lba, 2)) == units.LBA_OUT_OF_RANGE
    assert client.sense(WRITES[size](lba, 2), b"") == units.LBA_OUT_OF_RANGE
    assert client.wanted == 0


@pytest.mark.parametrize("lba", [1 << 63, (1 << 64) - 1])
def test_numbers_that_wrap(client: Client, lba: int) -> None:
    assert client.sense(commands.read_16(lba, 0xFFFFFFFF)) in (
        units.LBA_OUT_OF_RANGE,
        units.INVALID_FIELD_IN_CDB,
    )
    assert client.sense(commands.write_16(lba, 1)) == units.LBA_OUT_OF_RANGE


def test_too_much_at_once(client: Client) -> None:
    most = MAX_TRANSFER // BLOCK
    big = Client(Disk.in_memory(2 * MAX_TRANSFER, "big"))
    assert len(big.good(commands.read_16(0, most))) == MAX_TRANSFER
    assert big.sense(commands.read_16(0, most + 1)) == units.INVALID_FIELD_IN_CDB
    assert big.sense(commands.write_16(0, most + 1)) == units.INVALID_FIELD_IN_CDB


def test_protection_information_is_not_there(client: Client) -> None:
    assert client.sense(bytes((0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0))) == units.INVALID_FIELD_IN_CDB


def test_a_write_of_which_only_a_part_arrives_writes_the_whole_blocks(client: Client) -> None:
    operation = client.target.prepare(client.nexus, commands.write_10(0, 3).ljust(16, b"\0"))  # type: ignore[call-arg]
    assert operation.data_out_length == 3 * BLOCK
    assert operation.run(memoryview(block(1, 2)[:-1])).status == Status.GOOD
    assert client.good(commands.read_10(0, 3)) == block(1) + bytes(2 * BLOCK)


def test_a_write_protected_disk_takes_no_change() -> None:
    client = Client(make_disk(read_only=True))
    unmap = cdbs.unmap_parameters([(0, 1)])
    for cdb in (
        *(write(0, 1) for write in WRITES.values()),
        commands.write_same_10(0, 1),
        commands.write_same_16(0, 1),
        cdbs.unmap(len(unmap)),
    ):
        assert client.sense(cdb) == units.WRITE_PROTECTED
    client.good(commands.read_10(0, 1))
    client.good(commands.synchronize_cache_10())


@pytest.mark.parametrize("build", [commands.write_same_10, commands.write_same_16])
def test_write_same_repeats_one_block(client: Client, build: Any) -> None:
    client.good(build(1, 4), block(9))
    assert client.good(commands.read_10(0, 6)) == bytes(BLOCK) + block(9) * 4 + bytes(BLOCK)
    client.good(build(2, 1, unmap=True), bytes(BLOCK))
    assert client.good(commands.read_10(1, 3)) == block(9) + bytes(BLOCK) + block(9)
    assert client.sense(build(0, 0), b"") == units.INVALID_FIELD_IN_CDB
    assert client.sense(build(BLOCKS, 1), b"") == units.LBA_OUT_OF_RANGE
    assert client.sense(build(0, 1), b"short") == units.PARAMETER_LIST_LENGTH_ERROR


def test_write_same_16_needs_no_data_for_zeros(client: Client) -> None:
    client.good(commands.write_10(0, 2), block(1, 2))
    client.good(commands.write_same_16(0, 1, ndob=True))
    assert client.good(commands.read_10(0, 2)) == bytes(BLOCK) + block(2)


def test_unmap_makes_zeros_of_whole_ranges(client: Client) -> None:
    client.good(commands.write_10(0, 6), block(1, 6))
    unmap = cdbs.unmap_parameters([(1, 2), (4, 1), (5, 0)])
    client.good(cdbs.unmap(len(unmap)), unmap)
    assert client.good(commands.read_10(0, 6)) == (
        block(1) + bytes(2 * BLOCK) + block(4) + bytes(BLOCK) + block(6)
    )
    client.good(cdbs.unmap(0))


@pytest.mark.parametrize(
    ("parameters", "sense"),
    [
        (b"\0" * 7, units.PARAMETER_LIST_LENGTH_ERROR),
        (cdbs.unmap_parameters([(0, 1), (BLOCKS - 1, 2)]), units.LBA_OUT_OF_RANGE),
        (cdbs.unmap_parameters([((1 << 64) - 1, 0xFFFFFFFF)]), units.LBA_OUT_OF_RANGE),
    ],
)
def test_unmap_checks_all_before_it_does_any(client: Client, parameters: bytes, sense: Sense) -> None:
    client.good(commands.write_10(0, 1), block(1))
    assert client.sense(cdbs.unmap(len(parameters)), parameters) == sense
    assert client.good(commands.read_10(0, 1)) == block(1)


def test_lba_status_tells_what_is_mapped(client: Client) -> None:
    def status(lba: int) -> tuple[int, int, int]:
        answer = client.good(b"\x9e\x12" + lba.to_bytes(8, "big") + (24).to_bytes(4, "big"))
        return (
            int.from_bytes(answer[8:16], "big"),
            int.from_bytes(answer[16:20], "big"),
            answer[20],
        )

    assert status(0) == (0, BLOCKS, 1)
    client.good(commands.write_10(16, 8), bytes(8 * BLOCK))
    assert status(3) == (3, 13, 1)
    assert status(16) == (16, 8, 0)
    assert status(24) == (24, BLOCKS - 24, 1)
    assert client.sense(b"\x9e\x12" + BLOCKS.to_bytes(8, "big") + b"\0\0\0\x18") == units.LBA_OUT_OF_RANGE


_FUZZ = st.binary(min_size=16, max_size=16)


@given(_FUZZ, st.binary(max_size=64))
def test_any_cdb_has_an_answer(cdb: bytes, data: bytes) -> None:
    for unit in (
        Disk.in_memory(4 * BLOCK, "S"),
        Cd(Store.memory(8192), Identity("C")),
        LogicalUnit(Identity("P")),
    ):
        client = Client(unit)
        result = client.run(cdb, data)
        assert result.status in (Status.GOOD, Status.CHECK_CONDITION)
        assert (result.sense is not None) == (result.status == Status.CHECK_CONDITION)
        assert len(result.data) <= MAX_TRANSFER
        unit.close()


def test_unknown_operation_codes(client: Client) -> None:
    for code in 0x01, 0x5E, 0x7F, 0xA1, 0xFF:
        assert client.sense(bytes([code])) == units.INVALID_OPERATION_CODE
    assert client.sense(b"\x9e\x1f") == units.INVALID_FIELD_IN_CDB


# Unit attentions and states.


def test_each_nexus_hears_of_the_power_on_once(disk: Disk) -> None:
    for _ in range(2):
        nexus = Nexus()
        ready = bytes(16)
        assert disk.prepare(nexus, commands.inquiry(36).ljust(16, b"\0")).run(memoryview(b"")).status == 0
        assert disk.prepare(nexus, ready).run(memoryview(b"")).sense == units.POWER_ON
        assert disk.prepare(nexus, ready).run(memoryview(b"")).status == Status.GOOD


def test_request_sense_takes_a_unit_attention_away(disk: Disk, client: Client) -> None:
    disk.establish_attention(units.CAPACITY_CHANGED)
    assert Sense.parse(client.good(cdbs.request_sense())) == units.CAPACITY_CHANGED
    assert Sense.parse(client.good(cdbs.request_sense())).key is SenseKey.NO_SENSE
    client.good(commands.test_unit_ready())


def test_resize_is_told_to_every_nexus(disk: Disk, client: Client) -> None:
    other = Client(disk)
    client.good(commands.write_10(BLOCKS - 1, 1), block(1))
    disk.resize(BLOCKS + 1)
    for each in client, other:
        assert each.sense(commands.read_10(0, 1)) == units.CAPACITY_CHANGED
        assert Capacity.parse_16(each.good(commands.read_capacity_16())).blocks == BLOCKS + 1
    assert client.good(commands.read_10(BLOCKS - 1, 2)) == block(1) + bytes(BLOCK)


def test_reset_is_told_to_the_others(disk: Disk, client: Client) -> None:
    other = Client(disk)
    disk.reset(client.nexus)
    client.good(commands.test_unit_ready())
    assert other.sense(commands.test_unit_ready()) == units.BUS_DEVICE_RESET


def test_a_stopped_disk_does_nothing_with_its_medium(client: Client) -> None:
    stop, start, eject = (bytes((0x1B, 0, 0, 0, flags, 0)) for flags in (0, 1, 2))
    client.good(stop)
    for cdb in commands.test_unit_ready(), commands.read_10(0, 1), commands.read_capacity_16():
        assert client.sense(cdb) == units.STOPPED
    client.good(commands.inquiry(36))
    client.good(start)
    client.good(commands.read_10(0, 1))
    assert client.sense(eject) == units.INVALID_FIELD_IN_CDB


# The volatile cache.


def test_a_dropped_cache_loses_what_was_not_synchronised(disk: Disk, client: Client) -> None:
    client.good(commands.write_10(0, 4), block(1, 4))
    client.good(commands.synchronize_cache_10(0, 2))
    client.good(commands.write_10(1, 1), block(50))
    client.good(commands.write_10(9, 1, fua=True), block(60))
    assert disk.undo_log is not None
    assert disk.undo_log.blocks == {1, 2, 3}
    disk.drop_cache()
    assert client.sense(commands.read_10(0, 4)) == units.POWER_ON
    assert client.good(commands.read_10(0, 4)) == block(1, 2) + bytes(2 * BLOCK)
    assert client.good(commands.read_10(9, 1)) == block(60)


@pytest.mark.parametrize("build", [commands.synchronize_cache_10, commands.synchronize_cache_16])
def test_a_synchronised_cache_has_nothing_to_lose(disk: Disk, client: Client, build: Any) -> None:
    client.good(commands.write_10(0, 4), block(1, 4))
    unmap = cdbs.unmap_parameters([(3, 1)])
    client.good(cdbs.unmap(len(unmap)), unmap)
    client.good(build())
    disk.drop_cache()
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(0, 4)) == block(1, 3) + bytes(BLOCK)
    assert client.sense(build(BLOCKS - 1, 2)) == units.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("size", ["10", "12", "16"])
def test_a_write_with_fua_is_on_the_medium(disk: Disk, client: Client, size: str) -> None:
    client.good(commands.write_10(8, 1), block(1))
    cdb = bytearray(WRITES[size](8, 2))
    cdb[1] |= 0x08
    client.good(bytes(cdb), block(2) + block(3))
    disk.drop_cache()
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(8, 2)) == block(2) + block(3)


def test_a_read_with_fua_puts_what_the_cache_holds_on_the_medium(disk: Disk, client: Client) -> None:
    client.good(commands.write_10(8, 2), block(1) + block(2))
    assert client.good(commands.read_10(8, 1, fua=True)) == block(1)
    disk.drop_cache()
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(8, 2)) == block(1) + block(0)


def test_a_disk_without_fua_says_so_and_refuses_it() -> None:
    disk = make_disk(dpo_fua=False)
    client = Client(disk)
    answer = mode.parse_6(client.good(commands.mode_sense_6(mode.ALL_PAGES)))
    assert not answer.dpo_fua
    for cdb in commands.read_10(0, 1, fua=True), commands.write_16(0, 1, fua=True):
        assert client.sense(cdb) == units.INVALID_FIELD_IN_CDB
    client.good(commands.write_16(0, 1), block(1))
    assert client.good(commands.read_10(0, 1)) == block(1)
    disk.close()


def test_without_a_write_cache_nothing_is_ever_lost() -> None:
    disk = make_disk(write_cache=False, droppable=True)
    client = Client(disk)
    client.good(commands.write_10(0, 2), block(1, 2))
    unmap = cdbs.unmap_parameters([(1, 1)])
    client.good(cdbs.unmap(len(unmap)), unmap)
    disk.drop_cache()
    client.run(commands.test_unit_ready())
    assert client.good(commands.read_10(0, 2)) == block(1) + bytes(BLOCK)


def test_what_blocks_is_left_to_the_caller(tmp_path: Any) -> None:
    store = Store.open(tmp_path / "image", size=BLOCK)
    client = Client(Disk(store, Identity("S")))
    assert client.run(commands.write_10(0, 1), block(1)).sync is None
    for cdb in commands.write_10(0, 1, fua=True), commands.synchronize_cache_16():
        sync = client.run(cdb, block(1)).sync
        assert sync is not None
        sync()
    through = Client(Disk(store, Identity("S"), write_cache=False))
    assert through.run(commands.write_10(0, 1), block(1)).sync is not None
    assert Client(make_disk()).run(commands.synchronize_cache_16()).sync is None


# What goes wrong on purpose.


def test_a_medium_error_is_at_its_blocks(disk: Disk, client: Client) -> None:
    client.good(commands.write_10(0, 20), block(1, 20))
    disk.faults.append(Fault(units.READ_ERROR, blocks=range(10, 12)))
    client.good(commands.read_10(8, 2))
    client.good(commands.read_10(12, 8))
    assert client.sense(commands.read_10(8, 8)) == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, information=10)
    assert client.sense(commands.read_16(11, 1)) == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, information=11)
    disk.faults.clear()
    client.good(commands.read_10(8, 8))


def test_a_medium_error_behind_2_32_is_in_descriptor_format() -> None:
    disk = Disk.in_memory(BLOCK << 34, "big")
    client = Client(disk)
    disk.faults.append(Fault(units.READ_ERROR, blocks=range(1 << 33, (1 << 33) + 1)))
    result = client.run(commands.read_16(1 << 33, 1))
    assert result.sense_data[0] == 0x72
    assert Sense.parse(result.sense_data).information == 1 << 33


def test_busy_for_a_while(disk: Disk, client: Client) -> None:
    disk.faults.append(Fault(status=Status.BUSY, times=2))
    client.good(commands.inquiry(36))
    assert client.run(commands.read_10(0, 1)).status == Status.BUSY
    assert client.run(commands.test_unit_ready()).status == Status.BUSY
    client.good(commands.test_unit_ready())


def test_busy_for_ever(disk: Disk, client: Client) -> None:
    disk.faults.append(Fault(status=Status.BUSY))
    for _ in range(100):
        assert client.run(commands.read_10(0, 1)).status == Status.BUSY


def test_a_full_pool_refuses_writes_only(disk: Disk, client: Client) -> None:
    disk.faults.append(Fault(units.SPACE_ALLOCATION_FAILED, codes=units.WRITE_CODES))
    assert client.sense(commands.write_16(0, 1)) == units.SPACE_ALLOCATION_FAILED
    client.good(commands.read_16(0, 1))


def test_a_flush_that_fails_once(disk: Disk, client: Client) -> None:
    client.good(commands.write_16(0, 1), block(1))
    disk.faults.append(Fault(units.WRITE_ERROR, codes=units.SYNCHRONIZE_CODES, times=1))
    assert client.sense(commands.synchronize_cache_16()) == units.WRITE_ERROR
    assert disk.undo_log is not None
    assert disk.undo_log.blocks == {0}
    client.good(commands.synchronize_cache_16())
    assert disk.undo_log.blocks == frozenset()


def test_data_cut_short_with_good_status(disk: Disk, client: Client) -> None:
    disk.faults.append(Fault(codes=units.READ_CODES, cut=100, times=1))
    assert len(client.good(commands.read_16(0, 2))) == 2 * BLOCK - 100
    assert len(client.good(commands.read_16(0, 2))) == 2 * BLOCK


def test_a_store_that_fails_is_a_medium_error(disk: Disk, client: Client) -> None:
    disk.store.close()
    error = units.READ_ERROR
    assert client.sense(commands.read_10(7, 4)) == Sense(error.key, error.asc, error.ascq, information=7)
    disk.undo_log = None
    assert client.sense(commands.write_10(0, 1), block(1)) == units.WRITE_ERROR
    disk.store = Store.memory(BLOCK)


def test_a_full_file_system_is_a_full_pool(
    disk: Disk, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(offset: int, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.store, "write", full)
    assert client.sense(commands.write_10(0, 1), block(1)) == units.SPACE_ALLOCATION_FAILED


# Other types.


def test_a_cd_is_read_by_2048_bytes_and_knows_no_16_byte_commands() -> None:
    store = Store.memory(10 * 2048)
    store.write(2048, b"CD001")
    client = Client(Cd(store, Identity("C")))
    answer = InquiryData.parse(client.good(commands.inquiry(36)))
    assert answer.device_type is DeviceType.CD_DVD
    assert answer.removable
    capacity = Capacity.parse_10(client.good(commands.read_capacity_10()))
    assert capacity is not None
    assert (capacity.blocks, capacity.block_size) == (10, 2048)
    assert client.good(commands.read_10(1, 1)).startswith(b"CD001")
    for cdb in commands.read_capacity_16(), commands.read_16(0, 1), commands.write_10(0, 1):
        assert client.sense(cdb) == units.INVALID_OPERATION_CODE
    client.good(bytes((0x1B, 0, 0, 0, 2, 0)))
    assert client.sense(commands.read_10(0, 1)) == units.NO_MEDIUM
    assert vpd.parse_supported_pages(client.good(commands.inquiry(255, 0))) == {0x00, 0x80, 0x83}


def test_a_device_without_blocks() -> None:
    client = Client(LogicalUnit(Identity("E"), DeviceType.ENCLOSURE_SERVICES))
    answer = InquiryData.parse(client.good(commands.inquiry(36)))
    assert answer.device_type is DeviceType.ENCLOSURE_SERVICES
    assert answer.product == "enclosure-servic"
    client.good(commands.test_unit_ready())
    assert client.sense(commands.read_10(0, 1)) == units.INVALID_OPERATION_CODE
    assert client.sense(commands.read_capacity_10()) == units.INVALID_OPERATION_CODE


# Many units behind one name.


def test_report_luns_in_every_address_method() -> None:
    numbers = [0, 1, 255, 256, 16383, 16384, (1 << 24) - 1]
    device = Device(NAME, {number: make_disk() for number in numbers})
    client = Client(device)
    assert [*parse_luns(client.good(commands.report_luns(1024))).luns] == list(map(lun_from_number, numbers))
    for number in numbers:
        Client(device, lun_from_number(number)).good(commands.read_10(0, 1))
    device.close()


def test_report_luns_is_cut_to_the_allocation_length() -> None:
    device = Device(NAME, {number: make_disk() for number in range(4)})
    client = Client(device)
    answer = parse_luns(client.good(commands.report_luns(24)))
    assert len(answer.luns) == 2
    assert answer.cut
    assert answer.reported == 4
    assert client.sense(commands.report_luns(15)) == units.INVALID_FIELD_IN_CDB
    well_known = bytearray(commands.report_luns(64))
    well_known[2] = 1
    assert parse_luns(client.good(bytes(well_known))).luns == ()
    well_known[2] = 3
    assert client.sense(bytes(well_known)) == units.INVALID_FIELD_IN_CDB


def test_a_lun_that_leads_nowhere() -> None:
    device = Device(NAME, {1: make_disk()})
    client = Client(device, lun_from_number(0))
    assert client.good(commands.inquiry(36))[0] == 0x7F
    assert Sense.parse(client.good(cdbs.request_sense())) == units.LUN_NOT_SUPPORTED
    assert client.sense(commands.read_10(0, 1)) == units.LUN_NOT_SUPPORTED
    assert client.sense(commands.inquiry(36, 0x83)) == units.LUN_NOT_SUPPORTED
    assert len(parse_luns(client.good(commands.report_luns(64))).luns) == 1
    for lun in 0x0001_0002_0000_0000, 0x0101_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF:
        assert Client(device, lun).sense(commands.read_10(0, 1)) == units.LUN_NOT_SUPPORTED


def test_units_come_go_and_are_exchanged() -> None:
    first, second, third = make_disk(), Disk.in_memory(BLOCK, "second"), Disk.in_memory(BLOCK, "third")
    device = Device(NAME, {0: first, 1: second})
    client = Client(device, lun_from_number(1))
    device.attach(1, third)
    assert client.sense(commands.test_unit_ready()) == units.POWER_ON
    assert vpd.parse_serial(client.good(commands.inquiry(255, 0x80))) == "third"
    other = Client(device)
    assert device.detach(1) is third
    assert other.sense(commands.test_unit_ready()) == units.LUNS_CHANGED
    assert client.sense(commands.test_unit_ready()) == units.LUN_NOT_SUPPORTED
    assert device.units == {0: first}


def test_names_and_numbers_are_checked() -> None:
    with pytest.raises(ConfigError, match='target name "disk"'):
        Device("disk", {})
    with pytest.raises(ConfigError, match="LUN 16777216"):
        Device(NAME, {1 << 24: make_disk()})
