"""The argument of -o: one table of our own options, and what mount(8) and mount.fuse3(8) add to them.

An option is one line of `OPTIONS`. It sets a field of `MountOptions`, a field of `InitiatorOptions`, or what
a flag of the command line sets as well, so that fstab(5) can say everything.
"""

import grp
import os
import pwd
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

from iscsifs.errors import ConfigError, printable
from iscsifs.fs.platform.tuning import MAX_BACKGROUND, READ_AHEAD_KIB

FUSE_OPTIONS: Final = frozenset(
    (
        *("allow_other", "allow_root", "auto_unmount", "dev", "nodev", "suid", "nosuid", "exec", "noexec"),
        *("atime", "noatime", "sync", "async", "dirsync"),
        *("fsname=", "context=", "fscontext=", "defcontext=", "rootcontext="),
    )
)
"""Options of mount.fuse3(8) that are handed on; a name that ends in "=" has a value."""

GENERIC_OPTIONS: Final = frozenset(
    (
        *("defaults", "auto", "noauto", "nofail", "user", "nouser", "users", "nousers", "owner", "noowner"),
        *("group", "nogroup", "_netdev", "comment=", "relatime", "norelatime", "strictatime"),
        *("nostrictatime", "lazytime", "nolazytime", "diratime", "nodiratime", "iversion", "noiversion"),
        *("mand", "nomand", "silent", "loud", "default_permissions"),
    )
)
"""Options of mount(8) and fstab(5) that mean nothing here, or what is done anyway; those that begin with "x-"
or "X-" belong to them."""

_REFUSED: Final = {
    "max_read": "the kernel decides how much it reads at once; readahead=KiB says how far ahead",
    "remount": "what is mounted cannot be changed; unmount it and mount it again",
    "subtype": "it is iscsifs, by which umount(8) finds what is to be done",
    "secret": "everybody can see a secret on the command line; give secret_file=FILE",
    "password": "everybody can see a secret on the command line; give secret_file=FILE",
}
"""Options that others have, and why there is none here."""

_BYTES: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Sets(Enum):
    """What an option sets a field of."""

    COMMAND = "the arguments of the command line"
    MOUNT = "MountOptions"
    SESSION = "InitiatorOptions"


class Option(NamedTuple):
    """An option of -o: the *field* that it sets, and how its value is read; without *read* it has none.

    *read* raises ValueError with what to give instead. With *many* the field is a list of all values. With
    *negative* the option that stands alone sets False.
    """

    sets: Sets
    field: str
    read: Callable[[str], Any] | None = None
    many: bool = False
    negative: bool = False


def _id(number: Callable[[str], int], what: str) -> Callable[[str], int]:
    """Return what reads an identity as a number or, by *number*, as a name; *what* prints the names."""

    def read(text: str) -> int:
        if re.fullmatch("[0-9]{1,10}", text) and int(text) < 2**32 - 1:
            return int(text)
        try:
            return number(text)
        except (KeyError, ValueError):
            raise ValueError(f'give a number or a name, as "{what}" prints it') from None

    return read


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("give 0 or 1")
    return text == "1"


def _text(text: str) -> str:
    if not text:
        raise ValueError("give a value")
    return text


def path(text: str) -> Path:
    """Read the path of a file, which holds in another working directory too."""
    return Path(os.path.abspath(_text(text)))


def between(low: int, high: int, unit: str) -> Callable[[str], int]:
    """Return what reads a number of *unit* with these bounds."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise ValueError(f"give {unit}, {low} to {high}")
        return int(text)

    return read


def one_of(*choices: str) -> Callable[[str], str]:
    """Return what reads one of *choices*."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"give one of {', '.join(choices)}")
        return text

    return read


def _kib(text: str) -> int:
    """Read KiB, or a size with a unit such as 4M or 4MB."""
    match = re.fullmatch("([0-9]{1,10})(?:([KMGT])(?:i?B)?)?", text, re.IGNORECASE)
    size = int(match[1]) << _BYTES[(match[2] or "K").upper()] - 10 if match else -1
    if not 0 <= size <= 1048576:
        raise ValueError("give KiB, 0 to 1048576, or a size such as 4M")
    return size


def _trace(text: str) -> Path:
    """Read the file of a trace; "-" is the standard output."""
    return Path("-") if text == "-" else path(text)


OPTIONS: Final[Mapping[str, Option]] = {
    # What flags set as well.
    "user": Option(Sets.COMMAND, "user", _text),
    "username": Option(Sets.COMMAND, "user", _text),
    "secret_file": Option(Sets.COMMAND, "secret_file", path),
    "target_user": Option(Sets.COMMAND, "target_user", _text),
    "target_secret_file": Option(Sets.COMMAND, "target_secret_file", path),
    "auth": Option(Sets.COMMAND, "auth", one_of("none", "chap")),
    "discovery_auth": Option(Sets.COMMAND, "discovery_auth", one_of("auto", "chap", "none")),
    "digest": Option(Sets.COMMAND, "digest", one_of("none", "header", "data", "all")),
    "initiator": Option(Sets.COMMAND, "initiator", _text),
    "conf": Option(Sets.COMMAND, "conf", path),
    "nickname": Option(Sets.COMMAND, "nicknames", _text, many=True),
    "isns": Option(Sets.COMMAND, "isns", _text, many=True),
    "ibft": Option(Sets.COMMAND, "ibft"),
    "ibft_file": Option(Sets.COMMAND, "ibft_file", path),
    "log": Option(Sets.COMMAND, "log", path),
    "pattern": Option(Sets.COMMAND, "patterns", _text, many=True),
    "pid_file": Option(Sets.COMMAND, "pid_file", path),
    "port": Option(Sets.COMMAND, "port", between(1, 65535, "a number")),
    # The mount.
    "uid": Option(Sets.MOUNT, "uid", _id(lambda name: pwd.getpwnam(name).pw_uid, "getent passwd")),
    "gid": Option(Sets.MOUNT, "gid", _id(lambda name: grp.getgrnam(name).gr_gid, "getent group")),
    "direct_io": Option(Sets.MOUNT, "direct_io"),
    "exclusive": Option(Sets.MOUNT, "exclusive"),
    "nonempty": Option(Sets.MOUNT, "nonempty"),
    "autohost": Option(Sets.MOUNT, "autohost"),
    "retry": Option(Sets.MOUNT, "retry"),
    "noretry": Option(Sets.MOUNT, "retry", negative=True),
    "max_background": Option(Sets.MOUNT, "max_background", between(12, 65535, "a number of requests")),
    "readahead": Option(Sets.MOUNT, "read_ahead", _kib),
    "trace": Option(Sets.MOUNT, "trace", _trace),
    "trace_chap": Option(Sets.MOUNT, "trace_chap"),
    "trace_size": Option(Sets.MOUNT, "trace_size", lambda text: _kib(text) << 10),
    "trace_snaplen": Option(Sets.MOUNT, "trace_snaplen", between(64, 262144, "bytes")),
    # The sessions.
    "writebehind": Option(Sets.SESSION, "write_behind", _switch),
    "login_timeout": Option(Sets.SESSION, "login_timeout", between(1, 3600, "seconds")),
    "command_timeout": Option(Sets.SESSION, "command_timeout", between(1, 3600, "seconds")),
    "ping_interval": Option(Sets.SESSION, "ping_interval", between(0, 3600, "seconds")),
    "ping_timeout": Option(Sets.SESSION, "ping_timeout", between(1, 3600, "seconds")),
    "replacement_timeout": Option(Sets.SESSION, "replacement_timeout", between(1, 86400, "seconds")),
    "poll": Option(Sets.SESSION, "poll", between(0, 86400, "seconds")),
    "trust_unidentified": Option(Sets.SESSION, "trust_unidentified"),
}
"""Our own options. One without a value may stand alone or be given as 0 or 1."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the file system is mounted; *fuse* are options for FUSE, *uid* and *gid* own the files.

    *max_background* is a number of requests, *read_ahead* is in KiB. *session* are fields of
    InitiatorOptions, *command* what flags of the command line set as well. *nonempty* allows a mount point
    with files in it. With *exclusive* a unit has one writer at a time. With *autohost* a host is attached
    when it is looked up. *retry* says whether what is missing at the start is tried again (None: where
    anything could be mounted). *trace* is the file of a trace, of *trace_size* bytes at most if that is not
    0; *trace_snaplen* bytes of each packet are kept, and with *trace_chap* what CHAP sends is shown.
    """

    uid: int
    gid: int
    read_only: bool = False
    direct_io: bool = False
    exclusive: bool = False
    nonempty: bool = False
    autohost: bool = False
    retry: bool | None = None
    max_background: int = MAX_BACKGROUND
    read_ahead: int = READ_AHEAD_KIB
    trace: Path | None = None
    trace_chap: bool = False
    trace_size: int = 0
    trace_snaplen: int = 0
    fuse: tuple[str, ...] = ()
    session: Mapping[str, Any] = field(default_factory=dict)
    command: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Iterable[str], *, read_only: bool = False) -> Self:
        """Read the arguments of -o, each a list with commas; *read_only* is -r. Raises ConfigError.

        Of options that contradict each other the last one holds, as with mount(8).
        """
        writable = True
        fuse: list[str] = []
        fields: dict[Sets, dict[str, Any]] = {sets: {} for sets in Sets}
        for option in (option for argument in options for option in split(argument) if option):
            name, equals, value = option.partition("=")
            if option in ("ro", "rw"):
                writable = option == "rw"
            elif (own := OPTIONS.get(name)) and (equals or own.read is None):
                _set(fields[own.sets], own, name, value if equals else "1")
            elif name + equals in FUSE_OPTIONS:
                fuse.append(_escaped(option.replace('"', "")))
            elif name + equals not in GENERIC_OPTIONS and not name.startswith(("x-", "X-")):
                shown = name if name in _REFUSED else option  # without what may be a secret
                raise ConfigError(f"-o {printable(shown)}: {_fault(name, equals)}")
        read_only = read_only or not writable
        if read_only:
            fuse.append("ro")
        return cls(
            **{"uid": os.getuid(), "gid": os.getgid(), **fields[Sets.MOUNT]},
            read_only=read_only,
            fuse=tuple(fuse),
            session=MappingProxyType(fields[Sets.SESSION]),
            command=MappingProxyType(fields[Sets.COMMAND]),
        )

    @property
    def sync(self) -> bool:
        """Whether every write has to reach stable storage; the last of ``sync`` and ``async`` holds."""
        chosen = [option for option in self.fuse if option in ("sync", "async")]
        return chosen[-1:] == ["sync"]

    def fuse_options(self, source: str) -> tuple[str, ...]:
        """Return the options for FUSE; *source* is what is mounted, unless they say otherwise."""
        if any(option.startswith("fsname=") for option in self.fuse):
            return self.fuse
        return (*self.fuse, _escaped(f"fsname={source}"))


def split(argument: str) -> Iterator[str]:
    """Give the options of a list: a comma does not count behind a backslash, or between quotation marks."""
    for match in re.finditer(r'((?:[^",\\]|\\.|\\$|"[^"]*"?)*)(?:,|$)', argument, re.DOTALL):
        yield re.sub(r"\\([\\,])", r"\1", match[1])


def _escaped(option: str) -> str:
    """Return *option* as it stands in a list of FUSE's options."""
    return re.sub(r"([\\,])", r"\\\1", option)


def _set(fields: dict[str, Any], option: Option, name: str, text: str) -> None:
    try:
        value = (option.read or _switch)(text)
        if option.negative:
            value = not value
    except ValueError as exc:
        raise ConfigError(f"-o {name}={printable(text)}: {exc}") from None
    if option.many:
        fields.setdefault(option.field, []).append(value)
    else:
        fields[option.field] = value


def _fault(name: str, equals: str) -> str:
    """Say why there is no option *name*, with a value or without, and what may have been meant."""
    if name in _REFUSED:
        return _REFUSED[name]
    known = {*OPTIONS, "ro", "rw", *(option.removesuffix("=") for option in FUSE_OPTIONS | GENERIC_OPTIONS)}
    if name in known:
        return "it takes no value" if equals else f"it takes a value: {name}=VALUE"
    meant = get_close_matches(name, known, 1) or get_close_matches(name.replace("-", "_"), known, 1)
    hint = f"; did you mean {meant[0]}?" if meant else ""
    return f'there is no such option{hint}; see "Mount options" in iscsifs(8)'
