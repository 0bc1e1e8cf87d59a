"""What a mount tells of its targets and logical units, read into dataclasses.

Texts are those of the mount, where what comes from the network has passed an allow-list; here they are taken
back to what they stand for (``%2F`` is a slash). So they go to a terminal only through
`iscsifs.errors.printable`.
"""

import re
import stat
from dataclasses import dataclass
from urllib.parse import unquote

from iscsifs.ctl.mounted import Mount
from iscsifs.ctl.places import Place, targets, units_of


@dataclass(frozen=True, slots=True)
class Session:
    """The session of a target, as the files in ``session/`` tell it; None is a file that is not there."""

    state: str | None
    since: str | None
    isid: str | None
    tsih: str | None
    target_portal_group: int | None
    parameters: dict[str, str]
    connections: list[str]
    reconnects: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Unit:
    """A logical unit; *size* is in bytes, None where it cannot be read by block."""

    place: Place
    type: str | None
    vendor: str | None
    product: str | None
    version: str | None
    serial: str | None
    wwid: str | None
    block_size: int | None
    size: int | None
    read_only: bool | None
    device: str | None
    """The loop device that it is attached to."""
    partitions: dict[str, int]
    """Files of partitions, and their sizes in bytes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target with its units; *state* is that of its session."""

    place: Place
    targetname: str | None
    hostname: str | None
    ip: str | None
    port: int | None
    state: str | None
    units: tuple[Unit, ...]


def describe_all(mount: Mount) -> list[Target]:
    """Return every target with its units."""
    return [describe_target(mount, place) for place in targets(mount)]


def describe_target(mount: Mount, place: Place) -> Target:
    """Return the target at *place* with its units."""
    return Target(
        place=place,
        targetname=_text(mount, place, "targetname"),
        hostname=_text(mount, place, "hostname"),
        ip=mount.link(*place.names, "ip"),
        port=_number(mount.link(*place.names, "port")),
        state=mount.value(*place.names, "session", "state"),
        units=tuple(describe_unit(mount, unit) for unit in units_of(mount, place)),
    )


def describe_unit(mount: Mount, place: Place) -> Unit:
    """Return the logical unit at *place*."""
    storage = mount.status(*place.names, "storage")
    return Unit(
        place=place,
        type=_text(mount, place, "type"),
        vendor=_text(mount, place, "vendor"),
        product=_text(mount, place, "product"),
        version=_text(mount, place, "version"),
        serial=_text(mount, place, "serial"),
        wwid=_text(mount, place, "wwid"),
        block_size=_number(mount.link(*place.names, "blocksize")),
        size=None if storage is None else storage.st_size,
        read_only=None if storage is None else not storage.st_mode & stat.S_IWUSR,
        device=mount.link(*place.names, "device"),
        partitions=dict(_partitions(mount, place)),
    )


def read_session(mount: Mount, place: Place) -> Session:
    """Return what ``session/`` tells of the target at *place*."""

    def value(name: str) -> str | None:
        return mount.value(*place.names, "session", name)

    parameters = (line.partition("=") for line in (value("parameters") or "").splitlines())
    return Session(
        state=value("state"),
        since=value("since"),
        isid=value("isid"),
        tsih=value("tsih"),
        target_portal_group=_number(value("target_portal_group")),
        parameters={key.strip(): text.strip() for key, _, text in parameters},
        connections=(value("connections") or "").splitlines(),
        reconnects=_number(value("reconnects")),
        last_error=value("last_error"),
    )


def _partitions(mount: Mount, place: Place) -> list[tuple[str, int]]:
    found = []
    for name in mount.files(*place.names):
        if name.startswith("part") and name[4:].isdecimal():
            status = mount.status(*place.names, name)
            if status is not None:
                found.append((name, status.st_size))
    return found


def _text(mount: Mount, place: Place, name: str) -> str | None:
    link = mount.link(*place.names, name)
    return None if link is None else unquote(link, errors="backslashreplace")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,20}", text) else None
