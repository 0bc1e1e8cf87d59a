"""A disk in memory, and an initiator of it without a network."""

from collections.abc import Callable
from typing import Any

from iscsifs.scsi import cdb as commands
from iscsifs.scsi.sense import Sense
from iscsifs.scsi.status import Status
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.unit import LogicalUnit, Nexus, Result

BLOCK = 512
BLOCKS = 2048
NAME = "iqn.2001-04.com.example:target"


class Client:
    """A nexus to one unit, or to a device, that has heard of the power-on."""

    def __init__(self, target: LogicalUnit | Device, lun: int = 0) -> None:
        self.target = target
        self.lun = lun
        self.nexus = Nexus()
        self.wanted = 0
        self.run(commands.test_unit_ready())

    def run(self, cdb: bytes, data: bytes = b"") -> Result:
        padded = cdb.ljust(16, b"\0")
        if isinstance(self.target, Device):
            operation = self.target.prepare(self.nexus, self.lun, padded)
        else:
            operation = self.target.prepare(self.nexus, padded)
        self.wanted = operation.data_out_length
        return operation.run(memoryview(data)[: self.wanted])

    def good(self, cdb: bytes, data: bytes = b"") -> bytes:
        result = self.run(cdb, data)
        assert result.status == Status.GOOD, result.sense
        assert self.wanted == len(data)
        return bytes(result.data)

    def sense(self, cdb: bytes, data: bytes = b"") -> Sense:
        result = self.run(cdb, data)
        assert result.status == Status.CHECK_CONDITION
        assert not result.data
        assert result.sense is not None
        assert Sense.parse(result.sense_data) == result.sense
        return result.sense


def make_disk(**options: Any) -> Disk:
    options = {"block_size": BLOCK} | options
    return Disk.in_memory(BLOCKS * options["block_size"], "S123", **options)


def block(number: int, count: int = 1, size: int = BLOCK) -> bytes:
    return b"".join(bytes([number + i]) * size for i in range(count))


READS: dict[str, Callable[[int, int], bytes]] = {
    "6": lambda lba, blocks: bytes((0x08, lba >> 16, lba >> 8 & 255, lba & 255, blocks & 255, 0)),
    "10": commands.read_10,
    "12": lambda lba, blocks: b"\xa8\0" + lba.to_bytes(4, "big") + blocks.to_bytes(4, "big") + b"\0\0",
    "16": commands.read_16,
}
WRITES: dict[str, Callable[[int, int], bytes]] = {
    "6": lambda lba, blocks: b"\x0a" + READS["6"](lba, blocks)[1:],
    "10": commands.write_10,
    "12": lambda lba, blocks: b"\xaa" + READS["12"](lba, blocks)[1:],
    "16": commands.write_16,
}
