"""The grammar of iscsi.conf(5): ``keyword = value`` and ``nickname { keyword = value; ... }``.

White space and ends of lines separate; a semicolon may end a value; ``#`` begins a comment. A value is a
word, or stands between quotation marks. What FreeBSD's iscsictl would cut short is refused here.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, NoReturn

from iscsifs.errors import printable

_SPACE: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_WORD: Final = re.compile(r"[A-Za-z0-9._/:\[\]-]+")
_BARE: Final = re.compile(r"[^\s{};\"#]+")
_QUOTED: Final = re.compile(r'"([^"\r\n]*)"')
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Fault(ValueError):
    """What is wrong on a line of the file."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, slots=True)
class Statement:
    """One ``key = value``. A value is *quoted* where it stands between quotation marks."""

    key: str
    value: str
    line: int
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A nickname with its statements; *start* and *end* are where it stands in the text."""

    nickname: str
    line: int
    statements: tuple[Statement, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """The statements outside of all blocks, and the blocks."""

    statements: tuple[Statement, ...]
    blocks: tuple[Block, ...]


def scan(text: str) -> Document:
    """Take a file apart; raises Fault."""
    return _Scanner(text).document()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._last: Statement | None = None
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        if match := _CONTROL.search(text):
            self._refuse(match.start(), "there is a control character, or a byte that is not UTF-8")

    def document(self) -> Document:
        statements: list[Statement] = []
        blocks: list[Block] = []
        while self._skip():
            found = self._statement_or_block()
            if isinstance(found, Block):
                blocks.append(found)
            else:
                statements.append(found)
        return Document(tuple(statements), tuple(blocks))

    def _statement_or_block(self) -> Statement | Block:
        start = self._at
        word = self._name()
        self._skip()
        if self._peek() == "=":
            return self._statement(word, start)
        if self._peek() != "{":
            self._refuse_word(start, word, "is followed neither by = nor by {")
        return self._block(word, start)

    def _block(self, nickname: str, start: int) -> Block:
        self._at += 1
        statements: list[Statement] = []
        while True:
            if not self._skip():
                self._refuse(start, f'the block of "{printable(nickname)}" has no end; a }} is missing')
            if self._peek() == "}":
                self._at += 1
                return Block(nickname, self._line(start), tuple(statements), start, self._at)
            place = self._at
            key = self._name()
            self._skip()
            if self._peek() != "=":
                self._refuse_word(place, key, "is not followed by =")
            statements.append(self._statement(key, place))

    def _statement(self, key: str, start: int) -> Statement:
        """Read on from the "=" behind *key*."""
        self._at += 1
        while self._peek() in (" ", "\t"):
            self._at += 1
        if match := _QUOTED.match(self._text, self._at):
            value = match[1]
        elif match := _BARE.match(self._text, self._at):
            value = match[0]
        else:
            self._refuse(start, f"{printable(key)} has no value behind its =")
        quoted = match[0].startswith('"')
        self._at = match.end()
        behind = self._peek()
        if behind and not (behind.isspace() or behind in ";}" or (quoted and behind == "#")):
            self._refuse(
                start,
                f'the value of {printable(key)} goes on with "{printable(behind)}";'
                " put all of it between quotation marks",
            )
        self._last = Statement(key, value, self._line(start), quoted)
        return self._last

    def _name(self) -> str:
        match = _WORD.match(self._text, self._at) or _QUOTED.match(self._text, self._at)
        if match is None:
            here = printable(self._peek())
            self._refuse(self._at, f'"{here}" stands where a keyword or a nickname is expected')
        self._at = match.end()
        return match[0].strip('"')

    def _skip(self) -> bool:
        """Go to the next thing that is no space, comment or semicolon; return whether there is any."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None, "it matches nothing as well"
            self._at = match.end()
            if self._peek() != ";":
                return bool(self._peek())
            self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _line(self, place: int) -> int:
        return bisect_right(self._starts, place)

    def _refuse_word(self, place: int, word: str, reason: str) -> NoReturn:
        if self._last is not None and self._last.line == self._line(place):
            # It may be the rest of a secret, which no message shows.
            key = printable(self._last.key)
            self._refuse(place, f"the value of {key} has spaces in it; put all of it between quotation marks")
        self._refuse(place, f'"{printable(word)}" {reason}')

    def _refuse(self, place: int, reason: str) -> NoReturn:
        raise Fault(self._line(place), reason)
