"""The options and operands of ``iscsifs``."""

import argparse
import socket
from collections.abc import Callable

import iscsifs
from iscsifs.mount_options import OPTIONS
from iscsifs.terminal import Parser


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="iscsifs",
        usage="iscsifs [options] [[USER@]HOST[:PORT]...] MOUNTPOINT\n"
        "       iscsifs [options] iscsi://[USER@]HOST[:PORT]/TARGETNAME[/LUN] MOUNTPOINT\n"
        "       iscsifs -c FILE [-n NICKNAME]... | --isns SERVER | --ibft [options] MOUNTPOINT\n"
        "       iscsifs -D [options] [USER@]HOST[:PORT]...\n"
        "       iscsifs --unmount MOUNTPOINT...",
        description="Mount iSCSI targets as files.",
        epilog="The secret of CHAP comes from --secret-file, or is asked for on the terminal.",
        allow_abbrev=False,
    )
    parser.add_argument("operands", nargs="*", metavar="HOST... MOUNTPOINT", help=argparse.SUPPRESS)
    add = parser.add_argument
    add("-D", "--discover", action="store_true", help="list the targets of the hosts, and exit")
    add("-l", "--long", action="store_true", help="with -D, the logical units and their sizes too")
    add("--json", action="store_true", help="with -D, print JSON")
    add("-p", "--port", type=_value("port"), metavar="PORT", help="where no port is given (3260)")
    add(
        "-t",
        "--pattern",
        dest="patterns",
        action="append",
        metavar="PATTERN",
        help='only targets with such a name, as in "iqn.*:disk?"; may be repeated',
    )
    families = parser.add_mutually_exclusive_group()
    for family, version in (socket.AF_INET, 4), (socket.AF_INET6, 6):
        families.add_argument(
            f"-{version}",
            f"--ipv{version}",
            dest="family",
            action="store_const",
            const=family,
            default=socket.AF_UNSPEC,
            help=f"use IPv{version} only",
        )
    add("-a", "--auth", choices=("none", "chap"), help="authentication (chap where there is a user)")
    add("-u", "--user", metavar="USER", help="the user for CHAP")
    add(
        "--discovery-auth",
        choices=("auto", "chap", "none"),
        help="CHAP for discovery where the host asks for it (auto), always, or never",
    )
    add("--secret-file", type=_value("secret_file"), metavar="FILE", help="secrets, in a file of mode 0600")
    add("--target-user", metavar="NAME", help="have the target prove that it is NAME (mutual CHAP)")
    add("--target-secret-file", type=_value("target_secret_file"), metavar="FILE", help="the target's secret")
    add("--digest", choices=("none", "header", "data", "all"), help="CRC32C checks (none)")
    add("-i", "--initiator", metavar="NAME", help="our name (that of /etc/iscsi/initiatorname.iscsi)")
    add("-c", "--conf", type=_value("conf"), metavar="FILE", help="the targets of an iscsi.conf(5)")
    add(
        *("-n", "--nickname"),
        dest="nicknames",
        action="append",
        metavar="NICKNAME",
        help="only this target of it (/etc/iscsi.conf); may be repeated",
    )
    add("--isns", action="append", metavar="SERVER[:PORT]", help="the targets that an iSNS server tells of")
    add("--ibft", action="store_const", const=True, help="the targets that the firmware has booted from")
    add("--ibft-file", type=_value("ibft_file"), metavar="FILE", help="the same, from a copy of its table")
    add("-r", "--read-only", action="store_true", help="mount read-only")
    add(
        "-o",
        "--options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="ro, direct_io, exclusive, allow_other and others, also most options here: user=USER",
    )
    add("-U", "--unmount", action="store_true", help="unmount, and wait until everything is written")
    add("--log", type=_value("log"), metavar="FILE", help="append messages to FILE, with the time")
    add("--pid-file", type=_value("pid_file"), metavar="FILE", help="keep the number of the process in FILE")
    add("-f", "--foreground", action="store_true", help="stay in the foreground")
    add("-v", "--verbose", action="store_true", help="tell more")
    add("-d", "--debug", action="store_true", help="stay in the foreground and tell everything")
    add(
        *("-V", "--version"),
        action="version",
        version=f"iscsifs {iscsifs.__version__}",
        help="show the version, and exit",
    )
    return parser


def _value(option: str) -> Callable[[str], object]:
    """Return what reads the value of a flag as that of the same option of -o."""
    read = OPTIONS[option].read
    assert read is not None

    def convert(text: str) -> object:
        try:
            return read(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None

    return convert
