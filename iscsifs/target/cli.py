"""The command ``iscsifs-target``: images as the units of targets."""

import argparse
import hashlib
import ipaddress
import logging
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Final

import trio

import iscsifs
from iscsifs.errors import ConfigError, printable
from iscsifs.iscsi.chap import Credentials
from iscsifs.iscsi.names import DEFAULT_PORT, Portal, check_name
from iscsifs.scsi.capacity import MAX_BYTES
from iscsifs.secret import forbid_core_dumps, read_secret
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TargetConfig
from iscsifs.target.server import Server
from iscsifs.target.store import Store
from iscsifs.target.unit import Identity, LogicalUnit
from iscsifs.terminal import OutputError, Parser, complain, open_standard_streams, say, whole_number

DEFAULT_NAME: Final = "iqn.2001-04.com.example:target0"
"""A name under the domain that is reserved for examples, which no other target ought to have."""

_MEMORY: Final = "mem:"
_NAME: Final = re.compile(r"(iqn|eui|naa)\.")
"""How the name of a target begins; a FILE of such a name can be given as ./FILE."""

_POWERS: Final = "KMGTP"
_SIZE: Final = re.compile(f"([0-9]{{1,19}})(?:([{_POWERS}])(B|iB)?)?", re.IGNORECASE)
_MACHINE_ID: Final = Path("/etc/machine-id")  # machine-id(5)


class ExitStatus(IntEnum):
    """What the command ends with; iscsifs-target(8) has the list."""

    OK = 0
    FAILED = 1
    USAGE = 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="iscsifs-target",
        description="Serve images as the disks of iSCSI targets, until SIGINT or SIGTERM.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "images",
        metavar="FILE",
        nargs="+",
        help="a file or block device; memory, as in mem:64M; or an IQN, for a target of the FILEs behind it",
    )
    add("-V", "--version", action="version", version=f"iscsifs-target {iscsifs.__version__}")
    add("--bind", metavar="ADDRESS", default="127.0.0.1", help="the address to listen at (%(default)s)")
    port_help = "the port, 0 for a free one (%(default)s)"
    add("-p", "--port", type=whole_number, default=DEFAULT_PORT, help=port_help)
    add("--name", metavar="IQN", default=DEFAULT_NAME, help="the name of the first target (%(default)s)")
    block_help = "of a logical block (%(default)s)"
    add("--block-size", metavar="BYTES", type=whole_number, default=512, help=block_help)
    add("-r", "--read-only", action="store_true", help="refuse writes")
    add("--shared", action="store_true", help="let others, with --shared too, serve a FILE at the same time")
    add("--size", help="the size of a FILE that does not exist yet, as in 10G; it is made sparse")
    add("-u", "--user", help="only let this user in, by CHAP with the secret in --secret-file")
    add("--secret-file", metavar="FILE", type=Path, help="the user's secret, in one line; mode 0600")
    add("--target-user", metavar="NAME", help="the target's name for mutual CHAP")
    add("--target-secret-file", metavar="FILE", type=Path, help="the target's secret for mutual CHAP")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* until a signal comes, and return its exit status."""
    open_standard_streams()
    args = parser().parse_intermixed_args(argv)
    logging.basicConfig(format="iscsifs-target: %(message)s", level=logging.INFO, force=True)
    made: list[Path] = []
    try:
        with ExitStack() as stack:
            portal = _portal(args.bind, args.port)
            config = _access(args)
            if config.secrets is None and not ipaddress.ip_address(portal.host).is_loopback:
                _say(f"warning: everybody who reaches {portal.host} can read and write; see --user")
            devices = []
            for name, images in _targets(args.name, args.images).items():
                units = {}
                for number, image in enumerate(images):
                    units[number] = _unit(image, args, made)
                    stack.callback(units[number].close)
                devices.append(Device(name, units))
            trio.run(_serve, devices, portal, config, made)
    except ConfigError as exc:
        _say(str(exc))
        return ExitStatus.USAGE
    except KeyboardInterrupt:
        return ExitStatus.OK
    except Exception:
        logging.getLogger(__name__).critical("unexpected error, please report it", exc_info=True)
        return ExitStatus.FAILED
    finally:
        for path in made:  # for nothing, as it was never served
            path.unlink(missing_ok=True)
    return ExitStatus.OK


def _say(message: str) -> None:
    complain(f"iscsifs-target: {message}")


def _portal(address: str, port: int) -> Portal:
    try:
        host = str(ipaddress.ip_address(address))
    except ValueError:
        raise ConfigError(f'--bind "{printable(address)}": give an IPv4 or IPv6 address') from None
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: give a number from 0 to 65535")
    return Portal(host, port)


def _access(args: argparse.Namespace) -> TargetConfig:
    """Return a configuration with the CHAP names and secrets of the command line."""
    for user, secret_file, what in (
        (args.user, args.secret_file, ""),
        (args.target_user, args.target_secret_file, "target-"),
    ):
        if (user is None) != (secret_file is None):
            raise ConfigError(f"--{what}user and --{what}secret-file belong together; give both or none")
    if args.user is None:
        if args.target_user is not None:
            raise ConfigError("--target-user is for mutual CHAP; give --user and --secret-file as well")
        return TargetConfig(target_names=frozenset())
    forbid_core_dumps()
    secret = read_secret(args.secret_file)
    own = None if args.target_user is None else (args.target_user, read_secret(args.target_secret_file))
    Credentials(args.user, secret, *(own or ()))  # what cannot be used is refused here
    return TargetConfig(target_names=frozenset(), secrets={args.user: secret}, own=own)


def _targets(first: str, arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the images of each target: those behind its name, the *first* one's before any other name."""
    targets: dict[str, list[str]] = {}
    current = ""
    for argument in arguments:
        is_name = _NAME.match(argument) is not None
        if is_name or not current:
            current = argument if is_name else first
            check_name(current, "target name")
            if current in targets:
                raise ConfigError(f"target {current} is named twice; give it all its FILEs at once")
            targets[current] = []
        if not is_name:
            targets[current].append(argument)
    for name, images in targets.items():
        if not images:
            raise ConfigError(f"target {name} has no disk: give a FILE behind its name")
    return targets


def _unit(image: str, args: argparse.Namespace, made: list[Path]) -> LogicalUnit:
    """Return the disk of *image*, whose file is added to *made* if it did not exist."""
    size = None if args.size is None else _size(args.size)
    if image.startswith(_MEMORY):
        store = Store.memory(_size(image.removeprefix(_MEMORY)))
        identity = Identity.unique()
    elif not image:
        raise ConfigError('FILE "": give the name of a file')
    else:
        path = Path(image)
        store = Store.open(path, size=size, read_only=args.read_only, shared=args.shared)
        if store.made:
            made.append(path)
        identity = Identity(_serial(path))
    try:
        if store.size < args.block_size:
            raise ConfigError(f"{store.size} bytes are less than a block; make it longer: truncate -s SIZE")
        return Disk(store, identity, block_size=args.block_size, read_only=args.read_only)
    except ConfigError as exc:
        store.close()
        raise ConfigError(f"image {printable(image)}: {exc}") from None


def _serial(path: Path) -> str:
    """Return the serial number of the image at *path*: the same for this path of this machine.

    What the image holds does not matter, as it changes; a copy is another disk, and needs another number.
    """
    try:
        machine = _MACHINE_ID.read_bytes().strip()
    except OSError:
        machine = b""
    return hashlib.sha256(machine + os.fsencode(path.resolve())).hexdigest()[:16]


def _size(text: str) -> int:
    """Read a number of bytes: 10M and 10MiB are powers of 1024, 10MB those of 1000, as in truncate(1)."""
    size = 0
    if match := _SIZE.fullmatch(text):
        base = 1000 if (match[3] or "").upper() == "B" else 1024
        size = int(match[1]) * base ** (_POWERS.index(match[2].upper()) + 1 if match[2] else 0)
    if not size:
        raise ConfigError(f'"{printable(text)}" is not a size; give bytes, or K, M, G or T as in 64M')
    if size > MAX_BYTES:
        raise ConfigError(f'"{printable(text)}" is too much; a disk has at most {MAX_BYTES} bytes')
    return size


async def _serve(devices: Sequence[Device], portal: Portal, config: TargetConfig, made: list[Path]) -> None:
    with trio.open_signal_receiver(SIGINT, SIGTERM, SIGHUP) as signals:
        async with Server(devices, portals=[portal], config=config) as server:
            made.clear()
            try:
                for device in devices:
                    say(f"{server.portals[0]},{config.portal_group_tag} {device.name}")
            except OutputError as exc:  # it serves all the same
                _say(f"warning: {exc}")
            async for _ in signals:
                break
