"""Command numbering and status numbering, for both roles (RFC 7143 section 4.2.2).

Commands are numbered for a session, over all its connections (section 4.2.2.1): by the initiator with
`CommandNumbering`, while the target takes them in their order with `CommandOrder`. Statuses are numbered for
each connection (section 4.2.2.2): by the target with `StatusCounter`, while the initiator counts them with
`StatusNumbering`.

Every command and every answer of the initiator passes here. So the comparisons of `iscsi.serial` are written
out.
"""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from iscsifs.errors import ProtocolError
from iscsifs.iscsi import serial
from iscsifs.iscsi.bhs import opcode_of
from iscsifs.iscsi.pdu import (
    R2T,
    AsyncMessage,
    DataIn,
    LogoutResponse,
    NopIn,
    Reject,
    ScsiResponse,
    TaskManagementResponse,
    TextResponse,
)
from iscsifs.iscsi.serial import HALF, MASK

NumberedPdu = (
    DataIn
    | ScsiResponse
    | R2T
    | NopIn
    | TaskManagementResponse
    | TextResponse
    | LogoutResponse
    | AsyncMessage
    | Reject
)
"""What a target sends in the full feature phase. Each carries the command window of the session."""


class CommandNumbering:
    """CmdSN and the command window of a session as an initiator has them (section 4.2.2.1), at first those of
    its leading login.

    *cmd_sn* is the number of the next command, *max_cmd_sn* the last one that the target takes.
    """

    __slots__ = ("cmd_sn", "max_cmd_sn")

    def __init__(self, cmd_sn: int = 0, max_cmd_sn: int = 0) -> None:
        self.cmd_sn = cmd_sn
        self.max_cmd_sn = max_cmd_sn

    @property
    def window(self) -> int:
        """How many more commands the target takes."""
        window = (self.max_cmd_sn - self.cmd_sn + 1) & MASK
        return window if window <= HALF else 0

    def take_cmd_sn(self) -> int:
        """Return the CmdSN of a command that is sent now."""
        cmd_sn = self.cmd_sn
        self.cmd_sn = (cmd_sn + 1) & MASK
        return cmd_sn

    def update_window(self, pdu: NumberedPdu) -> None:
        """Take the command window of *pdu*, unless it is none or an older one.

        Raises ProtocolError where it acknowledges what was not sent.
        """
        exp_cmd_sn, max_cmd_sn = pdu.exp_cmd_sn, pdu.max_cmd_sn
        if 0 < (exp_cmd_sn - max_cmd_sn - 1) & MASK < HALF:
            return
        if 0 < (exp_cmd_sn - self.cmd_sn) & MASK < HALF:
            raise ProtocolError("ExpCmdSN is ahead of CmdSN", section="4.2.2.1", pdu=opcode_of(pdu).name)
        if 0 < (max_cmd_sn - self.max_cmd_sn) & MASK < HALF:
            self.max_cmd_sn = max_cmd_sn


_T = TypeVar("_T")


class CommandOrder(Generic[_T]):
    """The commands of a session as a target takes them: in the order of CmdSN (section 4.2.2.1).

    *window* is how many commands are taken at once, `queued` how many of these have no status yet.
    `exp_cmd_sn` is the number of the next command. A command of a later number is held, with its data, until
    those before it have come: at most *max_held* items of *max_held_length* bytes.
    """

    def __init__(self, window: int, *, max_held: int, max_held_length: int, exp_cmd_sn: int = 0) -> None:
        self.exp_cmd_sn = exp_cmd_sn
        self.queued = 0
        self._window = window
        self._max_held = max_held
        self._max_held_length = max_held_length
        self._held: dict[int, list[tuple[_T, int]]] = {}  # items and their bytes, by CmdSN
        self._count = 0
        self._length = 0

    @property
    def max_cmd_sn(self) -> int:
        """The last command that is taken now."""
        return serial.add(self.exp_cmd_sn, self._window - self.queued - 1)

    def may_come(self, cmd_sn: int) -> bool:
        """Whether the command of this number is in the window, and has not come."""
        return self.is_in_window(cmd_sn) and cmd_sn not in self._held

    def is_in_window(self, cmd_sn: int) -> bool:
        """Whether this number is in the window."""
        return serial.le(self.exp_cmd_sn, cmd_sn) and serial.le(cmd_sn, self.max_cmd_sn)

    def hold(self, cmd_sn: int, item: _T, length: int, pdu: str) -> None:
        """Keep *item*, a *pdu* with *length* bytes of data, until it is the turn of *cmd_sn*.

        On one connection commands are sent in their order: a gap behind which more waits than there is room
        for will not be filled. Raises ProtocolError then.
        """
        self._held.setdefault(cmd_sn, []).append((item, length))
        self._count += 1
        self._length += length
        if self._count > self._max_held or self._length > self._max_held_length:
            rule = f"too much waits for the command with CmdSN {self.exp_cmd_sn}"
            raise ProtocolError(rule, section="4.2.2.1", pdu=pdu)

    def held(self) -> Iterator[tuple[int, _T]]:
        """Yield the CmdSN and the first item of each command that is held."""
        for cmd_sn, items in self._held.items():
            if items:  # there are none for a command that was aborted
                yield cmd_sn, items[0][0]

    def abort(self, cmd_sn: int) -> None:
        """Count the command of this number as received, and discard what is held of it (section 11.5.1)."""
        self._take(cmd_sn)
        self._held[cmd_sn] = []

    def next(self) -> list[_T] | None:
        """Return what was held of the next command, and count it; None where it has not come."""
        items = self._take(self.exp_cmd_sn)
        if items is not None:
            self.exp_cmd_sn = serial.add(self.exp_cmd_sn, 1)
        return items

    def _take(self, cmd_sn: int) -> list[_T] | None:
        held = self._held.pop(cmd_sn, None)
        if held is None:
            return None
        self._count -= len(held)
        self._length -= sum(length for _, length in held)
        return [item for item, _ in held]


class StatusCounter:
    """StatSN of a connection as a target gives it out (section 4.2.2.2), from its login on.

    `stat_sn` is the number of the next status, `acknowledged` the last ExpStatSN of the initiator.
    """

    __slots__ = ("acknowledged", "stat_sn")

    def __init__(self, stat_sn: int = 0) -> None:
        self.stat_sn = stat_sn
        self.acknowledged = 0

    def take_stat_sn(self) -> int:
        """Return the StatSN of a status that is sent now."""
        stat_sn = self.stat_sn
        self.stat_sn = serial.add(stat_sn, 1)
        return stat_sn


class StatusNumbering:
    """StatSN of a connection (section 4.2.2.2) as an initiator counts it, at first that of its login.

    *exp_stat_sn* is the number of the next status; it acknowledges all statuses before it. *may_repeat* tells
    of a PDU whether its StatSN may be one that was counted before.
    """

    __slots__ = ("_may_repeat", "exp_stat_sn")

    def __init__(self, may_repeat: Callable[[NumberedPdu], bool], exp_stat_sn: int = 0) -> None:
        self.exp_stat_sn = exp_stat_sn
        self._may_repeat = may_repeat

    def count(self, pdu: NumberedPdu) -> None:
        """Count the StatSN of a *pdu* that has one of its own.

        With a number that was counted before no status is missing, and what is acknowledged stays as it is.
        Raises ProtocolError where it may not repeat, or where a status is missing: at ErrorRecoveryLevel 0
        nothing can bring it back.
        """
        if pdu.stat_sn == self.exp_stat_sn:
            self.exp_stat_sn = (self.exp_stat_sn + 1) & MASK
        elif not serial.lt(pdu.stat_sn, self.exp_stat_sn) or not self._may_repeat(pdu):
            rule = f"StatSN {pdu.stat_sn} where {self.exp_stat_sn} was due"
            raise ProtocolError(rule, section="4.2.2.2", pdu=opcode_of(pdu).name)
