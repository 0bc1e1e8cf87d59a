"""The command ``iscsifs-target``: images as the units of one target."""

import argparse
import hashlib
import ipaddress
import logging
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Final, NoReturn

import trio

import iscsifs
from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import DEFAULT_PORT, Portal
from iscsifs.scsi.capacity import MAX_BYTES
from iscsifs.secret import read_secret
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TargetConfig
from iscsifs.target.server import Server
from iscsifs.target.store import Store
from iscsifs.target.unit import Identity, LogicalUnit

DEFAULT_NAME: Final = "iqn.2001-04.com.example:target0"
"""A name under the domain that is reserved for examples, which no other target ought to have."""

_MEMORY: Final = "mem:"
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class ExitStatus(IntEnum):
    """What the command ends with; iscsifs-target(8) has the list."""

    OK = 0
    FAILED = 1
    USAGE = 2


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitStatus.USAGE, f"{self.prog}: {message}; see {self.prog} -h\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="iscsifs-target",
        description="Serve images as the disks of an iSCSI target, until SIGINT or SIGTERM.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("images", metavar="FILE", nargs="+", help="a file or block device; or memory, as in mem:64M")
    add("-V", "--version", action="version", version=f"iscsifs-target {iscsifs.__version__}")
    add("--bind", metavar="ADDRESS", default="127.0.0.1", help="the address to listen at (%(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="the port, 0 for a free one (%(default)s)")
    add("--name", metavar="IQN", default=DEFAULT_NAME, help="the name of the target (%(default)s)")
    add("--block-size", metavar="BYTES", type=int, default=512, help="of a logical block (%(default)s)")
    add("--read-only", action="store_true", help="refuse writes")
    add("--size", help="the size of a FILE that does not exist yet, as in 10G; it is made sparse")
    add("--user", help="only let this user in, by CHAP with the secret in --secret-file")
    add("--secret-file", metavar="FILE", type=Path, help="the user's secret, in one line; mode 0600")
    add("--target-user", metavar="NAME", help="the target's name for mutual CHAP")
    add("--target-secret-file", metavar="FILE", type=Path, help="the target's secret for mutual CHAP")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* until a signal comes, and return its exit status."""
    args = parser().parse_args(argv)
    logging.basicConfig(format="iscsifs-target: %(message)s", level=logging.INFO, force=True)
    try:
        with ExitStack() as stack:
            portal = _portal(args.bind, args.port)
            config = _access(args)
            if config.secrets is None and not ipaddress.ip_address(portal.host).is_loopback:
                _say(f"warning: everybody who reaches {portal.host} can read and write; see --user")
            units = {}
            for number, image in enumerate(args.images):
                units[number] = _unit(image, number, args)
                stack.callback(units[number].close)
            trio.run(_serve, Device(args.name, units), portal, config)
    except ConfigError as exc:
        _say(str(exc))
        return ExitStatus.USAGE
    except KeyboardInterrupt:
        return ExitStatus.OK
    except Exception:
        logging.getLogger(__name__).critical("unexpected error, please report it", exc_info=True)
        return ExitStatus.FAILED
    return ExitStatus.OK


def _say(message: str) -> None:
    print(f"iscsifs-target: {message}", file=sys.stderr)


def _portal(address: str, port: int) -> Portal:
    try:
        host = str(ipaddress.ip_address(address))
    except ValueError:
        raise ConfigError(f'--bind "{printable(address)}": give an IPv4 or IPv6 address') from None
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: give a number from 0 to 65535")
    return Portal(host, port)


def _access(args: argparse.Namespace) -> TargetConfig:
    """Return who is let in."""
    names = frozenset({args.name})
    for user, secret_file, what in (
        (args.user, args.secret_file, ""),
        (args.target_user, args.target_secret_file, "target-"),
    ):
        if (user is None) != (secret_file is None):
            raise ConfigError(f"--{what}user and --{what}secret-file belong together; give both or none")
    if args.user is None:
        if args.target_user is not None:
            raise ConfigError("--target-user is for mutual CHAP; give --user and --secret-file as well")
        return TargetConfig(target_names=names)
    secret = read_secret(args.secret_file)
    own = None if args.target_user is None else (args.target_user, read_secret(args.target_secret_file))
    Credentials(args.user, secret, *(own or ()))  # what cannot be used is refused here
    return TargetConfig(target_names=names, secrets={args.user: secret}, own=own)


def _unit(image: str, number: int, args: argparse.Namespace) -> LogicalUnit:
    size = None if args.size is None else _size(args.size)
    if image.startswith(_MEMORY):
        store = Store.memory(_size(image.removeprefix(_MEMORY)))
        serial = f"memory{number}"
    else:
        path = Path(image)
        store = Store.open(path, size=size, read_only=args.read_only)
        serial = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    try:
        return Disk(store, Identity(serial), block_size=args.block_size, read_only=args.read_only)
    except ConfigError as exc:
        store.close()
        raise ConfigError(f"image {printable(image)}: {exc}") from None


def _size(text: str) -> int:
    """Read a number of bytes, with K, M, G or T for powers of 1024."""
    match = re.fullmatch("([0-9]{1,19})([KMGT]?)", text)
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < size <= MAX_BYTES:
        raise ConfigError(f'"{printable(text)}" is not a size; give bytes, or K, M, G or T as in 64M')
    return size


async def _serve(device: Device, portal: Portal, config: TargetConfig) -> None:
    with trio.open_signal_receiver(SIGINT, SIGTERM, SIGHUP) as signals:
        async with Server([device], portals=[portal], config=config) as server:
            print(f"{server.portals[0]},{config.portal_group_tag} {device.name}", flush=True)
            async for _ in signals:
                break
