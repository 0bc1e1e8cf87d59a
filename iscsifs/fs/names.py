"""Names in the tree that come from the network: one allow-list for all of them."""

import hashlib
import string
from typing import Final

MAX_NAME: Final = 255
"""Bytes of a path component (NAME_MAX)."""

_ALLOWED: Final = frozenset((string.ascii_letters + string.digits + " +,-.:=@_").encode())
_FIRST: Final = frozenset((string.ascii_letters + string.digits + "_").encode())


def safe_name(text: str) -> bytes:
    """Return *text* from the network as a path component: the one allow-list for all of them.

    ASCII letters, digits and `` +,-.:=@_`` stay, the first character being a letter, a digit or "_"; every
    other byte of its UTF-8 becomes ``%XX``. So the result is never empty, "." or "..", no option to a
    command, and different for different texts. What is longer than 255 bytes ends in a hash of the whole.
    """
    raw = text.encode("utf-8", "surrogatepass")
    name = b"".join(
        bytes((byte,)) if byte in (_ALLOWED if i else _FIRST) else b"%%%02X" % byte
        for i, byte in enumerate(raw)
    )
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(raw).hexdigest()[:16].encode()
        name = name[: MAX_NAME - 1 - len(digest)] + b"~" + digest
    return name or b"%"
