"""The command ``iscsifs``."""

import getpass
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Final, TypeVar

import trio

from iscsifs import service
from iscsifs.command_line import parser
from iscsifs.config import Config, configure
from iscsifs.errors import (
    ConfigError,
    IscsifsError,
    LoginError,
    LoginRefused,
    NoTargetError,
    TransportError,
    reason,
)
from iscsifs.exit_status import ExitStatus as ExitStatus
from iscsifs.fs.background import Ready, run_in_background
from iscsifs.fs.mount import Mount, check_mount_point
from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.pidfile import pid_file
from iscsifs.fs.platform.loop_devices import why_not as why_no_loop_devices
from iscsifs.fs.platform.platform import LinuxPlatform, Platform
from iscsifs.fs.platform.tuning import Limits
from iscsifs.fs.tree import Tree
from iscsifs.ibft.search import NoIbft
from iscsifs.limits import ATTACH_TIMEOUT, END_TIMEOUT, LAST_LOGOUT_TIMEOUT
from iscsifs.logs import log_to_file, log_to_file_too, log_to_syslog, log_to_terminal, tell_repeats
from iscsifs.monitor.events import Events
from iscsifs.mount_options import MountOptions
from iscsifs.notify import notify
from iscsifs.service.about import show_config
from iscsifs.service.attach import Failure
from iscsifs.service.control import take_commands
from iscsifs.service.drain import all_is_safe, put_on_stable_storage
from iscsifs.service.find import find_targets, no_match, origins_of
from iscsifs.service.listing import Listed, json_text, with_units
from iscsifs.service.living import open_living_set
from iscsifs.service.loops import Loops, remove_left_over
from iscsifs.service.monitoring import show_monitoring
from iscsifs.service.network import Network
from iscsifs.service.own_files import OwnFiles
from iscsifs.service.retries import may_pass
from iscsifs.service.tracing import Traced, tracing
from iscsifs.terminal import OutputError, complain, open_standard_streams, say
from iscsifs.unmount import unmount

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOG_INTERVAL: Final = 5.0
"""Seconds between two looks at what was repeated in the log."""

_NOT_FOUND: Final = (2, 3)  # RFC 7143 section 11.13.5


_STATUS: Final[dict[type[BaseException], ExitStatus]] = {
    ConfigError: ExitStatus.USAGE,
    TransportError: ExitStatus.UNREACHABLE,
    LoginError: ExitStatus.REFUSED,
    NoTargetError: ExitStatus.NO_TARGET,
    NoIbft: ExitStatus.NO_TARGET,
    IscsifsError: ExitStatus.FAILED,
}


def status_of(exc: IscsifsError) -> ExitStatus:
    """Return the exit status that stands for *exc*."""
    if isinstance(exc, LoginRefused) and (exc.status_class, exc.status_detail) == _NOT_FOUND:
        return ExitStatus.NO_TARGET
    return next(_STATUS[kind] for kind in type(exc).__mro__ if kind in _STATUS)


def ask_secret(whose: str) -> bytes:
    """Ask for a secret on the terminal; raise ConfigError where there is none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise ConfigError(
            f"no secret for {whose}, and no terminal to ask on; give --secret-file FILE"
        ) from None
    return getpass.getpass(f"CHAP secret of {whose}: ").encode(errors="surrogateescape")


def main(
    argv: Sequence[str] | None = None,
    *,
    network: Network = service,
    platform: Callable[[Limits], Platform] = LinuxPlatform,
    ask: Callable[[str], bytes] = ask_secret,
) -> int:
    """Run the command with *argv*, and return its exit status.

    *network* takes the place of `iscsifs.service`, *platform* makes what takes the place of `LinuxPlatform`,
    *ask* takes that of the terminal where a secret is asked for.
    """
    open_standard_streams()
    args = parser().parse_intermixed_args(argv)
    log_to_terminal(logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING)
    if args.unmount:
        if args.discover:
            return _complain(ConfigError("-D and --unmount contradict each other; leave one of them out"))
        return _unmount(args.operands)
    try:
        config = configure(args, ask)
        if args.log is not None:
            _log_to(args.log)
        if config.mount_point is None:
            return _run(partial(_discover, config, network))
        check_mount_point(config.mount_point, config.mount_options.nonempty)
        if config.mount_options.loop and (why := why_no_loop_devices()):
            raise ConfigError(f"-o loop: {why}")
    except (ConfigError, NoTargetError) as exc:
        return _complain(exc)
    except KeyboardInterrupt:
        return ExitStatus.FAILED
    limits = Limits(config.mount_options.max_background, config.mount_options.read_ahead)
    mount = partial(_mount, config, config.mount_point, network, platform(limits))
    if config.foreground:
        return _run(partial(mount, lambda status: None))

    def serve(ready: Ready) -> int:
        is_ready = False

        def leave_terminal(status: int) -> None:
            nonlocal is_ready
            ready(status)
            is_ready = True
            log_to_syslog()

        status = _run(partial(mount, leave_terminal))
        if status is ExitStatus.OK and not is_ready:
            return _complain(IscsifsError(f"{config.mount_point}: it was unmounted before it could be used"))
        return status

    try:
        return run_in_background(serve)
    except OSError as exc:
        return _complain(IscsifsError(f"cannot start: {reason(exc)}"))


def _log_to(path: Path) -> None:
    try:
        log_to_file(path)
    except OSError as exc:
        raise ConfigError(f"log file {path}: {reason(exc)}") from None


def _unmount(operands: Sequence[str]) -> int:
    """Unmount each of *operands*; return the first exit status that tells of a failure."""
    if not operands:
        return _complain(ConfigError("give a mount point to unmount; see iscsifs -h"))
    statuses = []
    for operand in operands:
        try:
            statuses.append(unmount(Path(operand)))
        except IscsifsError as exc:
            statuses.append(_complain(exc))
    return next((status for status in statuses if status), ExitStatus.OK)


def _complain(exc: IscsifsError | Failure) -> ExitStatus:
    """Say on the terminal what went wrong."""
    complain(f"iscsifs: {exc}")
    log_to_file_too(str(exc))
    return status_of(exc.error if isinstance(exc, Failure) else exc)


def _summary(failures: Sequence[Failure], successes: object) -> ExitStatus:
    """Return what the command ends with."""
    if not failures:
        return ExitStatus.OK
    return ExitStatus.PARTIAL if successes else status_of(failures[0].error)


class _Signals:
    """The signals that ask for the end: `first`, and `second`, after which nothing is waited for."""

    def __init__(self) -> None:
        self.first = trio.Event()
        self.second = trio.Event()

    async def watch(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(SIGINT, SIGTERM, SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                _announce_end()
                (self.second if self.first.is_set() else self.first).set()


def _announce_end() -> None:
    """Tell the service manager that the end has begun, and what it may take."""
    seconds = END_TIMEOUT + 2 * LAST_LOGOUT_TIMEOUT
    notify("STOPPING=1", "STATUS=Writing what is not on stable storage, logging out", extend=seconds)


def _announce_waiting(what: str) -> None:
    """Tell the service manager what the end waits for, and that it goes on."""
    notify(f"STATUS={what}", extend=END_TIMEOUT + 2 * LAST_LOGOUT_TIMEOUT)


def _run(job: Callable[[_Signals], Awaitable[ExitStatus]]) -> ExitStatus:
    """Run *job*, which ends soon when a signal asks for that."""

    async def supervise() -> ExitStatus:
        status = ExitStatus.FAILED
        async with trio.open_nursery() as nursery:
            signals = _Signals()
            await nursery.start(signals.watch)
            nursery.start_soon(_tell_repeats)
            status = await job(signals)
            nursery.cancel_scope.cancel()
        return status

    try:
        return trio.run(supervise)
    except OSError as exc:  # what comes from a job is in a group
        return _complain(IscsifsError(f"cannot start: {reason(exc)}"))
    except Exception:
        log.critical("unexpected error, please report it", exc_info=True)
        return ExitStatus.FAILED
    finally:
        tell_repeats(0.0)


async def _tell_repeats() -> None:
    """Now and then have the log tell how often messages were repeated."""
    while True:
        await trio.sleep(_LOG_INTERVAL)
        tell_repeats()


async def _unless(stop: trio.Event, work: Callable[[], Awaitable[_T]]) -> _T | None:
    """Return the result of *work*, or None where *stop* came before it."""
    result = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        result = await work()
        nursery.cancel_scope.cancel()
    return result


async def _discover(config: Config, network: Network, signals: _Signals) -> ExitStatus:
    """List the targets of all hosts."""
    try:
        with tracing(config.mount_options, Events()) as trace:
            find = partial(_list, config, Traced(network, trace))
            found = await _unless(signals.first, find)
    except ConfigError as exc:
        return _complain(exc)
    if found is None:
        return ExitStatus.FAILED
    targets, failures = found
    lines = (line for target in targets for line in target.lines())
    is_listed = _tell([json_text(targets)] if config.json else lines)
    for failure in failures:
        _complain(failure)
    return _summary(failures, targets) if is_listed else ExitStatus.FAILED


async def _list(config: Config, network: Network) -> tuple[list[Listed], list[Failure]]:
    """Return the targets of all hosts, with their logical units where these are wanted."""
    logins, failures = await find_targets(config, network)
    if not config.long:
        return [Listed(login) for login in logins], failures
    listed, refused = await with_units(logins, network)
    return listed, failures + refused


def _tell(lines: Iterable[str]) -> bool:
    """Print *lines*; return whether the standard output took them, and say why not."""
    try:
        for line in lines:
            say(line)
    except OutputError as exc:
        if not exc.is_left:
            _complain(exc)
        return False
    return True


async def _mount(
    config: Config,
    mount_point: Path,
    network: Network,
    platform: Platform,
    ready: Ready,
    signals: _Signals,
) -> ExitStatus:
    """Log in to all targets, serve the file system until its end, write everything back and log out."""
    platform.keep_in_memory()
    login_timeout = config.options.login_timeout
    notify("STATUS=Logging in", extend=ATTACH_TIMEOUT + 2 * login_timeout)
    tree = Tree(_tree_options(config.mount_options))
    events = Events()
    show_config(tree, config, events)
    with ExitStack() as last:
        try:
            trace = last.enter_context(tracing(config.mount_options, events))
        except ConfigError as exc:
            return _complain(exc)
        network = Traced(network, trace)
        retries = config.mount_options.retry is not False
        async with open_living_set(tree, network, platform.poller, events, retries=retries) as living:
            take_commands(living, config, network)
            show_monitoring(living)
            OwnFiles(living, config, network, trace)
            await remove_left_over(mount_point)
            loops = Loops(
                tree, mount_point, events, is_automatic=config.mount_options.loop, tell=_announce_waiting
            )
            find = partial(living.find, origins_of(config, network, events))
            if (found := await _unless(signals.first, find)) is None:
                return ExitStatus.FAILED
            targets, failures = found
            failures += no_match(config, targets, failures)
            try:
                last.enter_context(pid_file(config.pid_file))
            except ConfigError as exc:
                return _complain(exc)
            result = await _unless(signals.first, partial(living.attach, targets))
            if result is None:
                return ExitStatus.FAILED
            attached, refused = result
            failures += refused
            waits = bool(config.mount_options.retry) and all(may_pass(failure.error) for failure in failures)
            for failure in failures:
                _complain(failure)
            status = _summary(failures, attached or waits)
            if config.hosts and not attached and not waits and not config.name_servers:
                return status
            if waits and failures:
                complain("iscsifs: what is missing is tried again; it appears when it comes")
            living.retry(refused)
            try:
                fuse_options = config.mount_options.fuse_options(config.source)
                mount = Mount(tree, mount_point, fuse_options, platform)
            except ConfigError as exc:
                return _complain(exc)
            record = last.enter_context(mount.record())
            last.callback(mount.close)  # after the logout: who sees it unmounted knows that all is done
            _tell(target.line() for target in attached)  # what cannot be printed is mounted all the same
            summary = f"Targets mounted: {len(attached)}; failures at the start: {len(failures)}"

            is_mounted, stop = trio.Event(), trio.Event()

            def announce() -> None:
                ready(status)
                notify("READY=1", f"STATUS={summary}")

            async def write_back() -> None:
                record.begin_end()
                _announce_end()
                await put_on_stable_storage(tree.storages)

            async def release_loops() -> None:
                await signals.first.wait()
                await loops.end()
                stop.set()

            async def serve() -> None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(living.follow)
                    nursery.start_soon(loops.run, is_mounted, announce)
                    nursery.start_soon(release_loops)
                    await mount.serve(stop, is_mounted.set, write_back)
                    nursery.cancel_scope.cancel()

            try:
                await _unless(signals.second, serve)
            finally:
                record.begin_end()
                for device in loops.left():
                    log.error("%s: left attached; reads and writes fail from now on", device)
                safe = all_is_safe(tree.storages) and mount.is_written_back
            if mount.fault is not None:
                status = _complain(mount.fault)
            record.status = ExitStatus.OK if safe else ExitStatus.NOT_WRITTEN
    return status if safe else ExitStatus.NOT_WRITTEN


def _tree_options(options: MountOptions) -> TreeOptions:
    return TreeOptions(
        uid=options.uid,
        gid=options.gid,
        read_only=options.read_only,
        direct_io=options.direct_io,
        sync=options.sync,
        exclusive=options.exclusive,
    )
