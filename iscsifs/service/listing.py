"""What ``iscsifs -D`` prints: targets, and with ``-l`` their logical units; for people, or as JSON."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from iscsifs.errors import printable
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.service.attach import Failure, Login, attach
from iscsifs.service.network import Initiator, LogicalUnit, Network
from iscsifs.transport.polling import NO_POLLER

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True, slots=True)
class Listed:
    """A target, and its logical units where these were asked for."""

    login: Login
    units: tuple[dict[str, Any], ...] | None = None

    def lines(self) -> Iterator[str]:
        """Yield a line for each portal, and an indented one for each logical unit."""
        yield from self.login.wanted.lines()
        for unit in self.units or ():
            yield f"    {_line(unit)}"

    def as_json(self) -> dict[str, Any]:
        """Return the same for a program."""
        wanted = self.login.wanted
        portals = [
            {"host": address.portal.host, "port": address.portal.port, "tag": address.tag}
            for address in wanted.addresses
        ]
        shown: dict[str, Any] = {"host": wanted.host_name, "target": wanted.name, "portals": portals}
        return shown if self.units is None else {**shown, "units": list(self.units)}


def json_text(targets: Sequence[Listed]) -> str:
    """Return one JSON array of all *targets*, in ASCII: no name is a command to a terminal."""
    return json.dumps([target.as_json() for target in targets], indent=2)


async def with_units(logins: Sequence[Login], network: Network) -> tuple[list[Listed], list[Failure]]:
    """Log in to the targets of *logins*, and out again; return what they have, and what failed."""
    async with AsyncExitStack() as stack:
        initiators: dict[InitiatorOptions, Initiator] = {}
        for options in dict.fromkeys(login.options for login in logins):
            initiators[options] = await stack.enter_async_context(network.open_initiator(options, NO_POLLER))
        attached, failures = await attach(logins, initiators)
        found = [Listed(each.login, tuple(map(_described, each.units()))) for each in attached]
    return found, failures


def _described(unit: LogicalUnit) -> dict[str, Any]:
    storage = unit.storage
    return {
        "lun": unit.label,
        "type": unit.type_name,
        "size": None if storage is None else storage.size,
        "block_size": None if storage is None else storage.block_size,
        "vendor": unit.vendor,
        "product": unit.product,
        "version": unit.revision,
        "serial": unit.serial,
        "wwid": unit.wwid,
    }


def _line(unit: dict[str, Any]) -> str:
    """Return the line of a logical unit: its number, type and size, what it calls itself, and its name."""
    words = [f"lun{unit['lun']}", unit["type"]]
    if unit["size"] is not None:
        words.append(f"{_size(unit['size'])} ({unit['size']} bytes, blocks of {unit['block_size']})")
    names = (unit["vendor"], unit["product"], unit["version"], unit["wwid"] or unit["serial"])
    return printable("  ".join([*words, *(name for name in names if name)]))


def _size(size: int) -> str:
    """Return a number of bytes in the largest unit in which it is at least 1."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size / (1 << 10 * power):.4g} {_UNITS[power]}"
