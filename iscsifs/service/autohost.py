"""``-o autohost``: a host is attached when somebody looks it up, as autofs(5) mounts.

Programs look for files of their own in every directory that they see. For a name that may be one of those no
packet is sent, not even to the DNS.
"""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from iscsifs.errors import ConfigError, IscsifsError
from iscsifs.fs.nodes import Refused
from iscsifs.iscsi.names import Portal

FAILURE_MEMORY: Final = 5.0
"""Seconds in which a host that could not be attached is not asked again."""

MAX_FAILURES: Final = 1024
"""Hosts that this is remembered of."""

HOSTS_FILE: Final = Path("/etc/hosts")

_ADDRESS: Final = re.compile(r"[0-9.]+|\[?[0-9a-f:.%]*:[0-9a-f:.%]*:[0-9a-z:.%]*\]?")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")

_OF_FILES: Final = frozenset(
    (
        *("a", "bak", "cfg", "conf", "css", "csv", "db", "desktop", "dll", "exe", "git", "gz", "html", "inf"),
        *("ini", "jpg", "js", "json", "lock", "log", "o", "orig", "pid", "png", "pyc", "so", "sock", "sql"),
        *("swp", "sys", "tar", "tmp", "toml", "txt", "xml", "yaml", "yml"),
    )
)
"""Ends of names that are those of files, though one is a top-level domain as well."""


def may_be_host(name: bytes, hosts_file: Path = HOSTS_FILE) -> bool:
    """Say whether a look at *name* is meant for a host: an address, a host with a port, a name with a dot
    whose end is not that of a file, or one of *hosts_file*. mkdir(2) takes others, too."""
    try:
        text = name.decode("ascii")
        Portal.parse(text)
    except (UnicodeDecodeError, ConfigError):
        return False
    host, colon, _ = text.rpartition(":")
    if _ADDRESS.fullmatch(text) or (colon and _ADDRESS.fullmatch(host)):
        return True
    host = host if colon else text
    if not _NAME.fullmatch(host) or host.rpartition(".")[2] in _OF_FILES:
        return False
    return bool(colon) or "." in host or host in _names_in(hosts_file)


def _names_in(file: Path) -> set[str]:
    """Return the names in a file like /etc/hosts."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {name for line in lines for name in line.partition("#")[0].split()[1:]}


class AutoHost:
    """Has *add_host* attach what is looked up, each host once at a time."""

    def __init__(self, add_host: Callable[[bytes], Awaitable[None]]) -> None:
        self._add_host = add_host
        self._under_way: dict[bytes, trio.Event] = {}
        self._failures: dict[bytes, float] = {}  # until when not to ask again

    async def look_up(self, name: bytes) -> None:
        """Attach the host *name* if it is one; return when it is there, or cannot be."""
        if name in self._under_way:
            await self._under_way[name].wait()
            return
        if trio.current_time() < self._failures.get(name, 0.0) or not may_be_host(name):
            return
        self._under_way[name] = trio.Event()
        try:
            await self._add_host(name)
            self._failures.pop(name, None)
        except (IscsifsError, Refused):  # there is an event with the reason
            self._failures.pop(name, None)
            self._failures[name] = trio.current_time() + FAILURE_MEMORY
            if len(self._failures) > MAX_FAILURES:
                del self._failures[next(iter(self._failures))]
        finally:
            self._under_way.pop(name).set()
