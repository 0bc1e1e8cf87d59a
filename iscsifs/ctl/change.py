"""The commands that change a mount: each makes or removes a directory, or writes to a control file.

What fails is told by the sentence that the mount has put into its events meanwhile; where there is none, by
the errno.
"""

import errno
import ipaddress
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from iscsifs.ctl.description import Unit, describe_unit
from iscsifs.ctl.events import Event, Reasons
from iscsifs.ctl.mounted import CONTROL, ControlError, Mount, status_of
from iscsifs.ctl.places import Place, all_places, find, targets, units_of
from iscsifs.errors import ConfigError, IscsifsError, printable, reason
from iscsifs.exit_status import ExitStatus

_HOST: Final = re.compile(r"(\[[0-9A-Za-z:.%_-]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)(:[0-9]{1,5})?")
_LONGEST: Final = 4096 - 1
"""Bytes of a command, without the newline."""

_DEVICE_TIME: Final = 3.0
"""Seconds in which the link to a loop device has to appear: the kernel may remember that there was none."""

_WORDS: Final = {
    errno.EBUSY: "is in use; close its files, detach its loop devices and try again",
    errno.EEXIST: "is there already",
    errno.ENOENT: "is not there; see iscsifsctl list",
    errno.ENXIO: "the host is not known",
    errno.EACCES: "the login was refused, or one of the two sides was not believed",
    errno.EPERM: "cannot be done there",
    errno.ENOSPC: "there are as many targets as there may be",
    errno.EINVAL: "cannot be understood",
    errno.EROFS: "the mount is read-only",
}
"""What the errno of a command means here, where the mount tells no sentence."""


def _do(mount: Mount, what: str, place: Place | None, action: Callable[[], None]) -> Reasons:
    """Do *action*, which is *what* a user wants, at *place*; return what came of it. Raises ControlError."""
    reasons = Reasons(mount)
    try:
        action()
    except OSError as exc:
        if (fault := mount.fault(exc)) is not None:
            raise fault from None
        told = reasons.sentence(place)
        words = _WORDS.get(exc.errno or 0) or reason(exc)
        raise ControlError(told or f"{without_secret(what)}: {words}", status_of(exc.errno)) from None
    return reasons


def _write(mount: Mount, what: str, place: Place | None, text: str, *names: str) -> Reasons:
    """Write the command *text* to the control file at *names*."""
    mount.require(*names)
    return _do(mount, what, place, lambda: mount.command(text, *names))


def without_secret(source: str) -> str:
    """Return *source* for a terminal: a root path may have a user and secrets in front of its ``@``."""
    return printable(re.sub(r"\A(iscsi:(?!//)[^:@]*):[^@]*@", r"\1:***@", source, flags=re.IGNORECASE))


def _one_line(text: str, what: str) -> str:
    """Return *text*, which becomes a line of a control file; raises ConfigError where it cannot."""
    if not text or not text.isprintable() or len(os.fsencode(text)) > _LONGEST:
        raise ConfigError(
            f'{what} "{without_secret(text)}": give 1 to {_LONGEST} bytes without control characters'
        )
    return text


def _absolute(file: str) -> str:
    """Return *file* as the process behind the mount finds it, whose directory is another one."""
    return _one_line(os.path.abspath(file), "file")


# Targets


def add(mount: Mount, source: str, *, is_nickname: bool = False) -> tuple[list[Place], list[Event]]:
    """Attach the targets of *source*; return those that came, and what failed with others."""
    _one_line(source, "source")
    before = set(targets(mount))
    if is_nickname or not _is_host(source):
        reasons = _write(mount, source, None, source, CONTROL, "attach")
        place = None
    else:
        place = Place(source)
        reasons = _do(mount, source, place, lambda: mount.make(source))
    return sorted(set(targets(mount)) - before), reasons.failures(place)


def _is_host(source: str) -> bool:
    """Say whether *source* is a host with or without a port, which is the name of a directory."""
    if _HOST.fullmatch(source):
        return True
    try:
        ipaddress.IPv6Address(source)
    except ValueError:
        return False
    return True


def remove(mount: Mount, word: str) -> None:
    """Log out of all targets of a host."""
    place = find(mount, word)
    if place.target:
        raise ConfigError(f"{printable(word)}: is no host; for one target there is: iscsifsctl logout")
    _do(mount, str(place), place, lambda: mount.remove(*place.names))


def login(mount: Mount, word: str) -> Place:
    """Log in to the target HOST/TARGET that is not there, but its host is."""
    names = tuple(word.removeprefix(f"{mount.path}/").strip("/").split("/"))
    if len(names) != 2 or not all(names) or not {".", ".."}.isdisjoint(names):
        raise ConfigError(f"{printable(word)}: give HOST/TARGET; for all targets of a host: iscsifsctl add")
    place = Place(*(_one_line(name, "name") for name in names))
    if mount.status(place.host) is None:
        raise ControlError(
            f"{printable(place.host)}: no such host; attach it with: iscsifsctl add", ExitStatus.NO_TARGET
        )
    _do(mount, str(place), place, lambda: mount.make(*place.names))
    return place


def logout(mount: Mount, word: str) -> None:
    """Log out of one target."""
    place = find(mount, word)
    if not place.target or place.unit:
        raise ConfigError(f"{printable(word)}: is no target; for all targets of a host: iscsifsctl remove")
    _do(mount, str(place), place, lambda: mount.remove(*place.names))


# Units


def rescan(mount: Mount, word: str | None) -> tuple[int, list[str], list[IscsifsError]]:
    """Have targets, or one unit, asked what they are now; return how many, what has changed and what failed.

    Without *word* that is every target, for a host every target of it.
    """
    top = None if word is None else find(mount, word)
    if top is not None and top.target:
        places = [top]
    else:
        places = [place for place in targets(mount) if top is None or top.contains(place)]
    before = _sizes(mount, places)
    failures: list[IscsifsError] = []
    for place in places:
        try:
            _write(mount, f"{place}: rescan", place, "1", *place.names, "rescan")
        except ControlError as exc:
            failures.append(exc)
    after = _sizes(mount, places)
    return len(places), _changes(before, after), failures


def _sizes(mount: Mount, places: Sequence[Place]) -> dict[Place, int | None]:
    """Return the units in *places*, and their sizes."""
    units = [unit for unit in all_places(mount) if unit.unit and any(top.contains(unit) for top in places)]
    return {unit: describe_unit(mount, unit).size for unit in units}


def _changes(before: dict[Place, int | None], after: dict[Place, int | None]) -> list[str]:
    lines = []
    for unit in sorted(before.keys() | after.keys()):
        if unit not in before:
            lines.append(f"{unit}: new, {after[unit]} bytes" if after[unit] is not None else f"{unit}: new")
        elif unit not in after:
            lines.append(f"{unit}: gone")
        elif before[unit] != after[unit]:
            lines.append(f"{unit}: {before[unit]} bytes before, now {after[unit]}")
    return [printable(line, _LONGEST) for line in lines]


def the_unit(mount: Mount, word: str) -> Place:
    """Return the unit that *word* means: one, or the only one of a target."""
    place = find(mount, word)
    if place.unit:
        return place
    units = units_of(mount, place) if place.target else []
    if len(units) != 1:
        raise ConfigError(
            f"{printable(word)}: is no unit; give one of them, as in: {printable(str(place))}/lun0"
        )
    return units[0]


def loop(mount: Mount, place: Place, *, attach: bool) -> Unit:
    """Attach the unit at *place* to a loop device, or detach it; return it as it is then."""
    what = f"{place}: loop device"
    _write(mount, what, place, "1" if attach else "0", *place.names, "loop")
    deadline = time.monotonic() + _DEVICE_TIME
    while (unit := describe_unit(mount, place)).device is None and attach and time.monotonic() < deadline:
        time.sleep(0.05)
    return unit


# The whole mount


def save(mount: Mount, file: str) -> None:
    """Have a configuration file written of what is attached now."""
    _write(mount, file, None, _absolute(file), CONTROL, "save")


def trace_start(mount: Mount, file: str, snap_length: int | None) -> None:
    """Have every PDU written to *file*, of each packet *snap_length* bytes at most."""
    path = _absolute(file)
    if re.search(r"\s", path):
        raise ConfigError(f'file "{printable(path)}": the name of a trace cannot have blanks')
    length = "" if snap_length is None else f" {snap_length}"
    _write(mount, file, None, path + length, CONTROL, "trace")


def trace_stop(mount: Mount) -> None:
    """End the trace."""
    _write(mount, "trace", None, "stop", CONTROL, "trace")


def trace_status(mount: Mount) -> dict[str, str | int] | None:
    """Return what the trace has written so far; None where there is none."""
    mount.require(CONTROL, "trace")
    text = mount.read(CONTROL, "trace").strip()
    if text == "off":
        return None
    found = re.fullmatch(r"(.*) ([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20})", text)
    if found is None:
        file = printable(str(mount.path.joinpath(CONTROL, "trace")))
        raise ControlError(f'{file}: cannot be understood: "{printable(text)}"')
    names = ("bytes", "frames", "dropped")
    return {"file": found[1]} | {
        name: int(count) for name, count in zip(names, found.groups()[1:], strict=True)
    }
