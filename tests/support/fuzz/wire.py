"""Streams of PDUs as the fuzz harnesses take them: written down without what a fuzzer cannot guess.

Digests are put in where they were agreed on, StatSN and CmdSN are given as the distance from the number that
is due, and the payload of a Data-In or a Data-Out is left out: the length in its header stands for it.
"""

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import BHS_LENGTH, IMMEDIATE
from iscsifs.iscsi.framing import SCRATCH_LENGTH, digest
from iscsifs.iscsi.pdu import (
    RESERVED_TAG,
    DataInFlag,
    Opcode,
)

SEGMENT = 1024
"""The MaxRecvDataSegmentLength of whom the stream is for: short, so that few bytes are many PDUs."""

WITHOUT_PAYLOAD = (Opcode.DATA_IN, Opcode.DATA_OUT)


@cache
def pattern(length: int) -> bytes:
    """Bytes of which no two stretches are alike."""
    return random.Random(length).randbytes(length)


class Written(NamedTuple):
    """One PDU as it is written down: its basic header, the AHS, and the data segment without padding."""

    header: bytes
    ahs: bytes
    data: bytes


def split(stream: bytes) -> Iterator[Written | bytes]:
    """Cut *stream* into PDUs and put payloads in; what is no whole PDU at the end is given as it is."""
    start = 0
    while len(stream) >= start + BHS_LENGTH:
        header = stream[start : start + BHS_LENGTH]
        length = int.from_bytes(header[5:8], "big")
        end_of_ahs = start + BHS_LENGTH + header[4] * 4
        ahs = stream[start + BHS_LENGTH : end_of_ahs]
        if header[0] & 0x3F in WITHOUT_PAYLOAD:
            data, start = pattern(length) if length <= SEGMENT else b"", end_of_ahs
        else:
            data, start = stream[end_of_ahs : end_of_ahs + length], end_of_ahs + length + -length % 4
        if len(ahs) < header[4] * 4 or len(data) < length:
            yield header + ahs + data
            return
        yield Written(header, ahs, data)
    yield stream[start:]


def numbered(stream: bytes, counts: Callable[[bytes], bool], due: int) -> Iterator[Written | bytes]:
    """Split *stream*, the first numbers (StatSN or CmdSN, bytes 24 to 27) being added to those that are due.

    *due* is the number of the first PDU; *counts* tells by its header whether a PDU takes one.
    """
    for written in split(stream):
        if isinstance(written, Written):
            header = written.header
            number = serial.add(int.from_bytes(header[24:28], "big"), due)
            if counts(header):
                due = serial.add(due, 1)
            yield written._replace(header=header[:24] + number.to_bytes(4, "big") + header[28:])
        else:
            yield written


def on_the_wire(written: Written | bytes, *, header_digest: bool, data_digest: bool) -> bytes:
    """Return the bytes of one PDU with its padding and digests."""
    if isinstance(written, bytes):
        return written
    head = written.header + written.ahs
    if header_digest:
        head += digest(head)
    data = written.data + bytes(-len(written.data) % 4)
    return head + data + (digest(data) if data and data_digest else b"")


def counts_status(header: bytes) -> bool:
    """Whether a PDU of a target takes a StatSN (RFC 7143 section 4.2.2.2)."""
    opcode = header[0] & 0x3F
    if opcode == Opcode.DATA_IN:
        return bool(header[1] & DataInFlag.STATUS)
    if opcode == Opcode.NOP_IN:
        return header[16:20] != RESERVED_TAG.to_bytes(4, "big")
    return opcode != Opcode.R2T


def counts_command(header: bytes) -> bool:
    """Whether a PDU of an initiator takes a CmdSN (RFC 7143 section 4.2.2.1)."""
    return header[0] & 0x3F not in (Opcode.DATA_OUT, Opcode.SNACK_REQUEST) and not header[0] & IMMEDIATE


def feed(
    get_buffer: Callable[[], memoryview], buffer_updated: Callable[[int], object], stream: bytes, piece: int
) -> None:
    """Let *stream* arrive in pieces of at most *piece* bytes; no buffer may be longer than there is need
    for."""
    position = 0
    while position < len(stream):
        place = get_buffer()
        assert 0 < len(place) <= SCRATCH_LENGTH
        count = min(len(place), piece, len(stream) - position)
        place[:count] = stream[position : position + count]
        position += count
        buffer_updated(count)
