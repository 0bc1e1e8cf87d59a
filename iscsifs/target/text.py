"""A text negotiation of the full feature phase, on the target's side (RFC 7143 sections 6.2 and 11.10)."""

from collections.abc import Callable

from iscsifs.iscsi.pdu import FINAL, TextFlag, TextRequest
from iscsifs.iscsi.text import Pair, TextCollector, cut_text, encode_pairs


class TextExchange:
    """One exchange: the text of a request, which may come in pieces, and the pieces of the answer.

    *tag* is the task tag of its requests. *answer(pairs)* answers the whole text, or returns None for one
    that is to be rejected. *limit* is how many bytes a piece of the answer may have.
    """

    def __init__(self, tag: int, answer: Callable[[list[Pair]], list[Pair] | None], limit: int) -> None:
        self._tag = tag
        self._answer = answer
        self._limit = limit
        self._collector = TextCollector("TEXT_REQUEST")
        self._pieces: list[bytes] = []

    def receive(self, pdu: TextRequest, data: bytes) -> tuple[bytes, int] | None:
        """Take a request; return the data segment and the flags of the response, None to reject it.

        With FINAL in the flags the exchange has ended.
        """
        more = bool(pdu.flags & TextFlag.CONTINUE)
        if pdu.initiator_task_tag != self._tag or (more and pdu.flags & FINAL):
            return None
        if not self._pieces:
            pairs = self._collector.add(data, more=more)
            if pairs is None:
                return b"", 0
            answer = self._answer(pairs)
            if answer is None:
                return None
            self._pieces = cut_text(encode_pairs(answer), self._limit)
        piece = self._pieces.pop(0)
        return piece, TextFlag.CONTINUE if self._pieces else pdu.flags & FINAL
