"""Command numbering and status numbering of the initiator (RFC 7143 section 4.2.2).

Commands are numbered for a session, over all its connections (section 4.2.2.1). Statuses are numbered for
each connection (section 4.2.2.2).

Every command and every answer passes here. So the comparisons of `iscsi.serial` are written out.
"""

from collections.abc import Callable

from iscsifs.errors import ProtocolError
from iscsifs.iscsi import serial
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
    opcode_of,
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
    """CmdSN and the command window of a session (section 4.2.2.1), at first those of its leading login.

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


class StatusNumbering:
    """StatSN of a connection (section 4.2.2.2), at first that of its login.

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
