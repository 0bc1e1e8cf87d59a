"""The command ``iscsifsctl``: parses and prints."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import iscsifs
from iscsifs.ctl import change, events, report, top
from iscsifs.ctl.mounted import CONTROL, ControlError, GoneError, Mount, find_mount
from iscsifs.ctl.places import Place, find
from iscsifs.ctl.sample import Sampler, rate_table
from iscsifs.errors import ConfigError, IscsifsError, printable
from iscsifs.exit_status import ExitStatus
from iscsifs.terminal import OutputError, Parser, complain, open_standard_streams, say, whole_number
from iscsifs.unmount import unmount

FindMount = Callable[[Path | None], Mount]
"""Finds the mount that is given with -m, or the only one."""

_LOOK_INTERVAL: Final = 0.5
"""Seconds between two looks for new events."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="iscsifsctl",
        description="Look into a mount of iscsifs, and change it: targets, units, loop devices, traces.",
        epilog="iscsifsctl COMMAND -h tells of one command.",
        allow_abbrev=False,
    )
    _add_mount_option(parser, default=None)
    parser.add_argument(
        *("-V", "--version"),
        action="version",
        version=f"iscsifsctl {iscsifs.__version__}",
        help="show the version, and exit",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[..., int], text: str, *, json: bool = False
    ) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        _add_mount_option(found, default=argparse.SUPPRESS)
        found.set_defaults(run=run)
        if json:
            found.add_argument("--json", action="store_true", help="print JSON, for scripts")
        return found

    command("list", _list, "list targets and units", json=True)
    what = command("show", _show, "show everything of a target or unit, or of the mount", json=True)
    what.add_argument("place", metavar="TARGET|UNIT", nargs="?", help="without it, the mount")

    what = command("add", _add, "attach the targets of a host, URL, root path, iSNS server or nickname")
    what.add_argument(
        "source",
        metavar="SOURCE",
        help="as on the command line of iscsifs; - to read it from the standard input",
    )
    what.add_argument("-n", "--nickname", action="store_true", help="SOURCE is one of the configuration file")
    what = command("remove", _remove, "log out of all targets of a host")
    what.add_argument("host", metavar="HOST")
    what = command("login", _login, "log in to one target of a host that is attached")
    what.add_argument("target", metavar="HOST/TARGET")
    what = command("logout", _logout, "log out of one target")
    what.add_argument("target", metavar="TARGET")
    what = command("rescan", _rescan, "look for new, resized and removed units")
    what.add_argument("place", metavar="HOST|TARGET|UNIT", nargs="?", help="without it, all targets")

    what = command("stats", _stats, "show what units have done, or do in each interval", json=True)
    what.add_argument("places", metavar="TARGET|UNIT", nargs="*", help="without it, all units")
    _add_interval(what, default=None)
    what.add_argument("-c", "--count", type=whole_number, metavar="N", help="end after N intervals")
    what = command("top", _top, "show what units do, live", json=True)
    _add_interval(what, default=2.0)
    what.add_argument("-s", "--sort", choices=tuple(top.ORDERS), default="name", help="sort by this (name)")
    what.add_argument("--once", action="store_true", help="print one table after an interval, and end")
    what = command("events", _events, "show what has happened", json=True)
    what.add_argument("-f", "--follow", action="store_true", help="go on with what happens from now on")
    what.add_argument("-n", "--lines", type=whole_number, metavar="N", help="only the latest N")

    what = command("loop", _loop, "attach a unit to a loop device; list those that are", json=True)
    what.add_argument("unit", metavar="UNIT", nargs="?")
    what.add_argument("-d", "--detach", action="store_true", help="detach it")
    what = command("trace", _trace, "write every PDU to a file for Wireshark", json=True)
    what.add_argument("action", choices=("start", "stop", "status"), metavar="start|stop|status")
    what.add_argument("file", metavar="FILE", nargs="?", help="where to; with start")
    what.add_argument("--snaplen", type=whole_number, metavar="BYTES", help="keep so much of each packet")
    what = command("save", _save, "write a configuration file of what is attached now")
    what.add_argument("file", metavar="FILE")
    what = command("import", _import, "take over what open-iscsi knows into a configuration file")
    what.add_argument(
        "directory", metavar="DIRECTORY", nargs="?", type=Path, help="its directory (/etc/iscsi)"
    )
    what.add_argument("--to", metavar="FILE", type=Path, help="the configuration file (/etc/iscsi.conf)")
    what = command("unmount", _unmount, "unmount, and wait until everything is written")
    what.add_argument("mount_point", metavar="MOUNTPOINT", nargs="?", type=Path)
    return parser


def _add_mount_option(parser: argparse.ArgumentParser, default: object) -> None:
    text = "which mount; without it, the only one"
    parser.add_argument("-m", "--mount", type=Path, metavar="MOUNTPOINT", default=default, help=text)


def _add_interval(parser: argparse.ArgumentParser, default: float | None) -> None:
    shown = "" if default is None else f" ({default:g})"
    parser.add_argument(
        *("-i", "--interval"),
        type=_seconds,
        metavar="SECONDS",
        default=default,
        help=f"of each sample{shown}",
    )


def _seconds(text: str) -> float:
    """Read an interval; raises ArgumentTypeError, which tells what to give."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86400.0:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of seconds from 0.1 to 86400')
    return value


def main(argv: Sequence[str] | None = None, *, find_mount: FindMount = find_mount) -> int:
    """Run the command with *argv*, and return its exit status; *find_mount* finds the mount."""
    open_standard_streams()
    args = parser().parse_args(argv)
    args.find_mount = find_mount
    try:
        # A request that the mount does not answer ends with its process only.
        with _interrupts_end_us(args.run not in (_top, _unmount)):
            return int(args.run(args))
    except OutputError as exc:
        if not exc.is_left:
            complain(f"iscsifsctl: {exc}")
        return ExitStatus.FAILED
    except IscsifsError as exc:
        return _complain(exc)
    except KeyboardInterrupt:
        return ExitStatus.FAILED


def _complain(exc: IscsifsError) -> ExitStatus:
    complain(f"iscsifsctl: {exc}")
    if isinstance(exc, ControlError):
        return exc.status
    return ExitStatus.USAGE if isinstance(exc, ConfigError) else ExitStatus.FAILED


@contextmanager
def _interrupts_end_us(wanted: bool) -> Iterator[None]:
    """Have SIGINT end the process at once, where that is *wanted*."""
    if not wanted:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _mount(args: argparse.Namespace, *words: str | None) -> Mount:
    """Return the mount that the arguments name: with -m, or as the beginning of one of *words*."""
    wanted: Path | None = args.mount
    if wanted is None:
        wanted = next((Path(word) for word in words if word and word.startswith("/")), None)
    find: FindMount = args.find_mount
    mount = find(wanted)
    mount.check()
    return mount


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


# What reads


def _list(args: argparse.Namespace) -> int:
    mount = _mount(args)
    _print([report.list_json(mount)] if args.json else report.list_targets(mount))
    return ExitStatus.OK


def _show(args: argparse.Namespace) -> int:
    mount = _mount(args, args.place)
    place = _place(mount, args.place)
    _print([report.show_json(mount, place)] if args.json else report.show(mount, place))
    return ExitStatus.OK


def _place(mount: Mount, word: str | None) -> Place | None:
    """Return what *word* means; None for the mount itself."""
    if word is None or Path(word) == mount.path:
        return None
    return find(mount, word)


def _stats(args: argparse.Namespace) -> int:
    mount = _mount(args, *args.places)
    wanted = [place for place in (_place(mount, word) for word in args.places) if place is not None]
    if args.interval is None and args.count is None:
        counts = report.statistics_of(mount, wanted)
        if args.json:
            say(report.statistics_json(mount, counts))
        elif counts:
            _print(report.statistics_tables(counts))
        return ExitStatus.OK
    sampler = Sampler(mount, wanted)
    sampler.take()
    number = 0
    while args.count is None or number < args.count:
        time.sleep(args.interval or 1.0)
        mount.check_again()
        samples = sampler.take()
        if number and not args.json:
            say("")
        _print([report.samples_json(mount, samples)] if args.json else rate_table(samples))
        number += 1
    return ExitStatus.OK


def _top(args: argparse.Namespace) -> int:
    mount = _mount(args)
    if top.can_draw() and not args.once and not args.json:
        top.run(mount, args.interval, args.sort)
        return ExitStatus.OK
    samples = top.once(mount, args.interval, args.sort)
    _print([report.samples_json(mount, samples)] if args.json else rate_table(samples))
    return ExitStatus.OK


def _events(args: argparse.Namespace) -> int:
    mount = _mount(args)

    def tell(found: Iterable[events.Event]) -> None:
        _print(event.json() if args.json else event.line() for event in found)

    mount.require(CONTROL, events.CURRENT)
    follower = events.Follower(mount)
    found = follower.look()
    tell(found if args.lines is None else found[max(len(found) - args.lines, 0) :])
    try:
        while args.follow:
            time.sleep(_LOOK_INTERVAL)
            tell(follower.look())
    except GoneError as exc:  # which is how following ends
        complain(f"iscsifsctl: {exc}")
    return ExitStatus.OK


# What changes


def _add(args: argparse.Namespace) -> int:
    mount = _mount(args)
    source = sys.stdin.readline().rstrip("\n") if args.source == "-" else args.source
    found, failures = change.add(mount, source, is_nickname=args.nickname)
    _print(printable(str(mount.path.joinpath(*place.names)), sys.maxsize) for place in found)
    for event in failures:
        complain(f"iscsifsctl: {event.text}")
    return ExitStatus.PARTIAL if failures else ExitStatus.OK


def _remove(args: argparse.Namespace) -> int:
    change.remove(_mount(args, args.host), args.host)
    return ExitStatus.OK


def _login(args: argparse.Namespace) -> int:
    change.login(_mount(args, args.target), args.target)
    return ExitStatus.OK


def _logout(args: argparse.Namespace) -> int:
    change.logout(_mount(args, args.target), args.target)
    return ExitStatus.OK


def _rescan(args: argparse.Namespace) -> int:
    mount = _mount(args, args.place)
    is_mount = args.place is not None and Path(args.place) == mount.path
    asked, changes, failures = change.rescan(mount, None if is_mount else args.place)
    _print(changes)
    statuses = [_complain(exc) for exc in failures]
    if not statuses:
        return ExitStatus.OK
    return ExitStatus.PARTIAL if len(statuses) < asked else statuses[0]


def _loop(args: argparse.Namespace) -> int:
    mount = _mount(args, args.unit)
    if args.unit is None:
        if args.detach:
            raise ConfigError("give the unit to detach; see iscsifsctl loop")
        units = report.loop_devices(mount)
        _print([report.as_json(units)] if args.json else report.loop_table(units))
        return ExitStatus.OK
    unit = change.loop(mount, change.the_unit(mount, args.unit), attach=not args.detach)
    if args.json:
        say(report.as_json([unit]))
    elif unit.device is not None:
        say(printable(unit.device))
    return ExitStatus.OK


def _trace(args: argparse.Namespace) -> int:
    if args.action == "start" and args.file is None:
        raise ConfigError("give the file to write to, as in: iscsifsctl trace start FILE")
    if args.action != "start" and (args.file is not None or args.snaplen is not None):
        raise ConfigError(f"trace {args.action} takes no file and no length")
    mount = _mount(args)
    if args.action == "start":
        change.trace_start(mount, args.file, args.snaplen)
    elif args.action == "stop":
        change.trace_stop(mount)
    else:
        found = change.trace_status(mount)
        if args.json:
            say(report.as_json(found))
        else:
            _print(report.trace_lines(found))
    return ExitStatus.OK


def _save(args: argparse.Namespace) -> int:
    change.save(_mount(args), args.file)
    return ExitStatus.OK


def _import(args: argparse.Namespace) -> int:
    from iscsifs.ctl import records  # which takes a while, and no other command needs

    imported = records.import_records(args.to, args.directory)
    _print(imported.lines())
    for note in imported.notes:
        complain(f"iscsifsctl: {note}")
    if not imported.unreadable:
        return ExitStatus.OK
    return ExitStatus.PARTIAL if imported.entries else ExitStatus.FAILED


def _unmount(args: argparse.Namespace) -> int:
    if args.mount is not None and args.mount_point is not None:
        raise ConfigError("the mount point is given twice; leave -m out")
    path = args.mount_point or args.mount
    return unmount(args.find_mount(None).path if path is None else path)
