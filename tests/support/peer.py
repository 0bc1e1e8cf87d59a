"""A target without a mind of its own: a test reads every request and writes every response.

::

    async with scripted_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(initiator_under_test, peer.portal)
        await peer.login(InitialR2T="Yes", ImmediateData="No")
        command = await peer.expect(ScsiCommand)
        await peer.r2t(command, offset=0, length=512)
        data_out = await peer.expect(DataOut)
        assert peer.data == b"..."
        await peer.status(command)

The numbers that every response carries are counted in `stat_sn` and `exp_cmd_sn`, and `window` makes
MaxCmdSN; a test may set them as it likes, or build the PDU itself and `send` it.
"""

import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import pack
from iscsifs.iscsi.framing import Receiver, frame
from iscsifs.iscsi.names import Portal
from iscsifs.iscsi.pdu import (
    FINAL,
    R2T,
    RESERVED_TAG,
    AsyncEvent,
    AsyncMessage,
    DataIn,
    DataInFlag,
    DataOut,
    LoginFlag,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    Pdu,
    Reject,
    RejectReason,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    Stage,
    TaskManagementRequest,
    TaskManagementResponse,
    TextRequest,
    TextResponse,
)
from iscsifs.iscsi.text import decode_pairs, encode_pairs
from iscsifs.scsi.sense import Sense

P = TypeVar("P", bound=Pdu)

_DECLARED = frozenset(
    {"SessionType", "InitiatorName", "InitiatorAlias", "TargetName", "MaxRecvDataSegmentLength"}
)
_LISTS = frozenset({"AuthMethod", "HeaderDigest", "DataDigest", "TaskReporting"})
_PREFERRED = {"AuthMethod": "None", "HeaderDigest": "None", "DataDigest": "None"}


class Closed(Exception):
    """The initiator has closed the connection, or reset it."""


class Peer:
    """One portal and, after `accept` or `login`, the newest connection to it.

    `received` and `sent` have all PDUs of all connections with their data segments; `data` and `ahs` belong
    to the PDU that was received last. Nothing waits longer than `timeout` seconds.
    """

    def __init__(self, listener: trio.SocketListener) -> None:
        self.portal = Portal(*listener.socket.getsockname()[:2])
        self.received: list[tuple[Pdu, bytes]] = []
        self.sent: list[tuple[Pdu, bytes]] = []
        self.data = b""
        self.ahs = b""
        self.timeout = 60.0
        self.window = 32
        self.stat_sn = 1
        self.exp_cmd_sn = 0
        self.offered: dict[str, str] = {}  # the keys of the last login
        self._listener = listener
        self._sending = trio.Lock()
        self._stream: trio.SocketStream | None = None
        self._receiver = Receiver(lambda *_: None, self._arrived)
        self._digests = {"header_digest": False, "data_digest": False}
        self._queue: deque[tuple[Pdu, bytes, bytes]] = deque()
        self._sending = trio.Lock()

    # Connections and bytes.

    async def accept(self) -> None:
        """Wait for the next connection, which takes the place of the last."""
        with trio.fail_after(self.timeout):
            stream = await self._listener.accept()
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
        self._stream = stream
        self._receiver = Receiver(lambda *_: None, self._arrived, ahs_allowed=True)
        self._digests = {"header_digest": False, "data_digest": False}
        self._queue.clear()

    async def stop_listening(self) -> None:
        """Refuse connections from now on."""
        await self._listener.aclose()

    @property
    def stream(self) -> trio.SocketStream:
        """The connection."""
        assert self._stream is not None, "nobody has connected"
        return self._stream

    async def send_bytes(self, data: bytes) -> None:
        """Send any bytes."""
        with trio.fail_after(self.timeout):
            async with self._sending:
                await self.stream.send_all(data)

    async def close(self) -> None:
        """End the connection with FIN."""
        await self.stream.aclose()

    async def reset(self) -> None:
        """End the connection with RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()

    async def closed(self) -> None:
        """Wait until the initiator closes the connection; fail if it sends anything first."""
        try:
            pdu, data = await self.receive()
        except Closed:
            return
        raise AssertionError(f"not closed, but {pdu} with {len(data)} bytes")

    # PDUs.

    async def receive(self) -> tuple[Pdu, bytes]:
        """Return the next PDU and its data segment. Raises `Closed`."""
        with trio.fail_after(self.timeout):
            return await self._receive()

    async def _receive(self) -> tuple[Pdu, bytes]:
        while not self._queue:
            chunk = await self._receive_some()
            while chunk:
                buffer = self._receiver.get_buffer()
                count = min(len(buffer), len(chunk))
                buffer[:count] = chunk[:count]
                self._receiver.buffer_updated(count)
                chunk = chunk[count:]
        pdu, self.ahs, self.data = self._queue.popleft()
        self.received.append((pdu, self.data))
        if (
            not isinstance(pdu, DataOut | SnackRequest)
            and not pdu.immediate  # type: ignore[union-attr]
            and pdu.cmd_sn == self.exp_cmd_sn  # type: ignore[union-attr]
        ):
            self.exp_cmd_sn = serial.add(self.exp_cmd_sn, 1)
        return pdu, self.data

    async def expect(self, kind: type[P]) -> P:
        """Return the next PDU, which has to be of *kind*; `data` has its data segment."""
        pdu, _ = await self.receive()
        assert isinstance(pdu, kind), f"{kind.__name__} was due, not {pdu}"
        return pdu

    async def nothing(self, seconds: float) -> None:
        """Fail if the initiator sends anything within *seconds*."""
        with trio.move_on_after(seconds):
            pdu, data = await self._receive()
            raise AssertionError(f"nothing was due, not {pdu} with {len(data)} bytes")

    async def send(self, pdu: Pdu, data: bytes = b"", *, ahs: bytes = b"", **digests: bool) -> None:
        """Send *pdu* as it is, with the digests of the connection or those given."""
        await self.send_bytes(self.encode(pdu, data, ahs=ahs, **digests))

    def encode(self, pdu: Pdu, data: bytes = b"", *, ahs: bytes = b"", **digests: bool) -> bytes:
        """Return the bytes of *pdu* and take note of it in `sent`: to be cut, glued together or spoilt."""
        self.sent.append((pdu, bytes(data)))
        login = isinstance(pdu, LoginResponse)
        return b"".join(frame(pdu, data, ahs, **(digests if login else self._digests | digests)))

    # Numbers.

    def count_status(self) -> int:
        """Return the StatSN of a response and go on to the next."""
        stat_sn = self.stat_sn
        self.stat_sn = serial.add(stat_sn, 1)
        return stat_sn

    @property
    def max_cmd_sn(self) -> int:
        """MaxCmdSN, as `window` makes it."""
        return serial.add(self.exp_cmd_sn, self.window - 1)

    @property
    def numbers(self) -> dict[str, int]:
        """The numbers of a PDU that does not count in StatSN."""
        return {"stat_sn": self.stat_sn, "exp_cmd_sn": self.exp_cmd_sn, "max_cmd_sn": self.max_cmd_sn}

    def counted(self) -> dict[str, int]:
        """The numbers of a PDU that counts in StatSN."""
        return self.numbers | {"stat_sn": self.count_status()}

    # The usual responses. Whatever is in *fields* replaces what would be in the PDU.

    async def status(
        self, command: ScsiCommand, status: int = 0, sense: Sense | bytes = b"", **fields: Any
    ) -> None:
        """End *command* with a SCSI Response."""
        raw = sense.pack() if isinstance(sense, Sense) else sense
        response = ScsiResponse(FINAL, 0, status, command.initiator_task_tag, **self.counted())
        await self.send(response._replace(**fields), len(raw).to_bytes(2, "big") + raw if raw else b"")

    async def data_in(self, command: ScsiCommand, data: bytes, **fields: Any) -> None:
        """Send a Data-In that is all *command* reads, with GOOD status."""
        flags = fields.get("flags", DataInFlag.FINAL | DataInFlag.STATUS)
        pdu = DataIn(
            flags=flags,
            status=0,
            lun=0,
            initiator_task_tag=command.initiator_task_tag,
            target_transfer_tag=RESERVED_TAG,
            data_sn=0,
            buffer_offset=0,
            **(self.counted() if flags & DataInFlag.STATUS else self.numbers | {"stat_sn": 0}),
        )
        await self.send(pdu._replace(**fields), data)

    async def r2t(self, command: ScsiCommand, *, offset: int, length: int, **fields: Any) -> None:
        """Ask for *length* bytes at *offset* of what *command* writes."""
        pdu = R2T(
            lun=command.lun,
            initiator_task_tag=command.initiator_task_tag,
            target_transfer_tag=0x80000000,
            r2t_sn=0,
            buffer_offset=offset,
            desired_data_transfer_length=length,
            **self.numbers,
        )
        await self.send(pdu._replace(**fields))

    async def managed(self, request: TaskManagementRequest, response: int = 0, **fields: Any) -> None:
        """Answer a task management function."""
        pdu = TaskManagementResponse(response, request.initiator_task_tag, **self.counted())
        await self.send(pdu._replace(**fields))

    async def logged_out(self, request: LogoutRequest, response: int = 0, **fields: Any) -> None:
        """Answer a logout; closing the connection is up to the test."""
        pdu = LogoutResponse(response, request.initiator_task_tag, **self.counted())
        await self.send(pdu._replace(**fields))

    async def text(self, request: TextRequest, data: bytes, **fields: Any) -> None:
        """Answer a Text Request."""
        pdu = TextResponse(
            flags=FINAL, lun=request.lun, initiator_task_tag=request.initiator_task_tag, **self.counted()
        )
        await self.send(pdu._replace(**fields), data)

    async def ping(self, data: bytes = b"", **fields: Any) -> None:
        """Send a NOP-In that asks for an answer."""
        pdu = NopIn(lun=0, initiator_task_tag=RESERVED_TAG, target_transfer_tag=0x77, **self.numbers)
        await self.send(pdu._replace(**fields), data)

    async def async_message(self, event: AsyncEvent | int, data: bytes = b"", **fields: Any) -> None:
        """Send an Asynchronous Message."""
        pdu = AsyncMessage(lun=0, initiator_task_tag=RESERVED_TAG, async_event=event, **self.counted())
        await self.send(pdu._replace(**fields), data)

    async def reject(self, reason: RejectReason | int, pdu: Pdu, **fields: Any) -> None:
        """Reject *pdu*."""
        response = Reject(reason, RESERVED_TAG, **self.counted())
        await self.send(response._replace(**fields), pack(pdu))

    # Login.

    async def login(self, answers: Mapping[str, str | None] | None = None, **keys: str | None) -> None:
        """Accept a connection and carry its login through, without authentication.

        A key that the initiator offers is answered with what *answers* or *keys* say, not at all where that
        is None, else with what was offered; None is preferred for digests. TargetPortalGroupTag,
        MaxRecvDataSegmentLength and whatever else is given are sent with the first operational answer.
        """
        given: dict[str, str | None] = {
            "TargetPortalGroupTag": "1",
            "MaxRecvDataSegmentLength": "262144",
            **(answers or {}),
            **keys,
        }
        await self.accept()
        self.offered = {}
        declared = False
        while True:
            request = await self.expect(LoginRequest)
            offered = dict(decode_pairs(self.data, pdu="LOGIN_REQUEST"))
            self.offered |= offered
            reply = {key: given.get(key, _choose(key, value)) for key, value in offered.items()}
            for key in _DECLARED & reply.keys():
                del reply[key]
            if request.flags >> 2 & 3 == Stage.OPERATIONAL and not declared:
                declared = True
                reply |= {key: value for key, value in given.items() if key not in self.offered}
                reply["MaxRecvDataSegmentLength"] = given["MaxRecvDataSegmentLength"]
            final = bool(request.flags & LoginFlag.TRANSIT) and request.flags & 3 == Stage.FULL_FEATURE
            self.exp_cmd_sn = request.cmd_sn
            response = LoginResponse(
                flags=request.flags,
                version_max=0,
                version_active=0,
                isid=request.isid,
                tsih=1 if final else request.tsih,
                initiator_task_tag=request.initiator_task_tag,
                **self.counted(),
            )
            pairs = [(key, value) for key, value in reply.items() if value is not None]
            await self.send(response, encode_pairs(pairs))
            for key, name in ("HeaderDigest", "header_digest"), ("DataDigest", "data_digest"):
                if reply.get(key) == "CRC32C":
                    self._digests[name] = True
            if final:
                break
        self._receiver.header_digest = self._digests["header_digest"]
        self._receiver.data_digest = self._digests["data_digest"]
        length = given["MaxRecvDataSegmentLength"]
        self._receiver.max_data_segment_length = 8192 if length is None else int(length, 0)

    async def _receive_some(self) -> memoryview:
        try:
            chunk = await self.stream.receive_some(1 << 16)
        except trio.BrokenResourceError:
            raise Closed from None
        if not chunk:
            raise Closed
        return memoryview(chunk)

    def _arrived(self, pdu: Pdu, ahs: bytes, data: memoryview) -> None:
        self._queue.append((pdu, ahs, bytes(data)))


def _choose(key: str, value: str) -> str:
    """Return a good answer to an offer."""
    if key not in _LISTS:
        return value
    items = value.split(",")
    preferred = _PREFERRED.get(key)
    return preferred if preferred in items else items[0]


@asynccontextmanager
async def scripted_peer() -> AsyncIterator[Peer]:
    """Give a `Peer` that listens on a free port of loopback, and close all of it at the end."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    peer = Peer(listener)
    try:
        yield peer
    finally:
        await listener.aclose()
        if peer._stream is not None:
            await trio.aclose_forcefully(peer._stream)
