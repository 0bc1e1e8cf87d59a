"""From an address to a logged-in connection: TCP, redirections, and the second try that some targets need."""

import errno
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

import trio

from iscsifs.errors import (
    ConnectionClosed,
    IscsifsError,
    LoginRefused,
    LoginTimeout,
    ProtocolError,
    RedirectionError,
    TransportError,
    reason,
)
from iscsifs.initiator.options import Digests, InitiatorOptions
from iscsifs.initiator.trace import tracer
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.keys import INITIATOR_OFFER, Value
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig, Redirect, Redirections, another_try, dropped
from iscsifs.iscsi.names import Portal, TargetAddress
from iscsifs.transport.link import Link
from iscsifs.transport.lookup import look_up
from iscsifs.transport.polling import NO_POLLER as NO_POLLER
from iscsifs.transport.polling import Poller as Poller
from iscsifs.transport.tap import tapped
from iscsifs.transport.waiting import explained

log = logging.getLogger(__name__)

_DIGESTS: dict[Digests, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": (("None",), ("None",)),
    "header": (("CRC32C", "None"), ("None",)),
    "data": (("None",), ("CRC32C", "None")),
    "all": (("CRC32C", "None"), ("CRC32C", "None")),
}


def offer(options: InitiatorOptions) -> dict[str, Value]:
    """Return the operational keys to offer, with the digests that are wanted where the target has them.

    The larger DefaultTime2Wait holds: it is left to the target how long a lost session stays away.
    """
    header, data = _DIGESTS[options.digests]
    return {
        **INITIATOR_OFFER,
        "HeaderDigest": header,
        "DataDigest": data,
        "DefaultTime2Wait": 0,
        **options.offer,
    }


class Connect(Protocol):
    """How to reach a portal: `connect`, or what stands in for TCP."""

    async def __call__(self, portal: Portal, family: socket.AddressFamily) -> socket.socket:
        """Return a connected non-blocking socket; raises TransportError."""


def _prepare(options: InitiatorOptions, sock: socket.socket) -> None:
    """Give *sock* our end before it is connected; raises OSError where the address is not ours."""
    is_six = sock.family == socket.AF_INET6
    if options.dscp is not None:
        level, option = (
            (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if is_six else (socket.IPPROTO_IP, socket.IP_TOS)
        )
        sock.setsockopt(level, option, options.dscp << 2)
    if options.pcp is not None:  # behind the code point, which has a priority as well
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, options.pcp)
        except PermissionError:
            log.warning("priority %d (pcp) takes CAP_NET_ADMIN; going on without", options.pcp)
    if options.source_address is not None:
        sock.bind((options.source_address, 0))


async def connect(
    portal: Portal, family: socket.AddressFamily, options: InitiatorOptions | None = None
) -> socket.socket:
    """Return a non-blocking TCP socket connected to *portal*, over addresses of *family*.

    Each address of its name gets a fair part of the time that the caller allows. *options* say what our end
    is. Raises TransportError, which names the portal, the reason and what to look at.
    """
    found = await look_up(portal, family)
    failure = 0
    source = None if options is None else options.source_address
    if source is not None:
        own = socket.AF_INET6 if ":" in source else socket.AF_INET
        found = [entry for entry in found if entry[0] == own]
        if not found:
            raise TransportError(
                f"{portal}: it has no address of the kind of {source}, to connect from there"
            )
    for left, (address_family, kind, protocol, _, address) in zip(
        range(len(found), 0, -1), found, strict=True
    ):
        patience = max(trio.current_effective_deadline() - trio.current_time(), 0) / left
        try:
            sock = socket.socket(address_family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            failure = error.errno or 0
            continue
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if options is not None:
                _prepare(options, sock)
            failure = sock.connect_ex(address)
            if failure == errno.EINPROGRESS:
                failure = errno.ETIMEDOUT
                with trio.move_on_after(patience):
                    await trio.lowlevel.wait_writable(sock)
                    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:
            sock.close()
            from_ = "" if source is None else f"from {source}: "
            raise TransportError(f"{portal}: {from_}{reason(error)}", number=error.errno or 0) from None
        except BaseException:
            sock.close()
            raise
        if not failure:
            return sock
        sock.close()
    why = reason(OSError(failure, os.strerror(failure)))
    raise TransportError(f"{portal}: {why}", number=failure)


def _tcp(options: InitiatorOptions) -> Connect:
    """Return `connect` with our end as *options* have it."""
    return partial(connect, options=options)


class Dialler:
    """Logs in to one target, or for discovery to none, again and again as the same initiator port.

    The *addresses* are tried in their order. *isid* stays the same, so that a new session takes the place of
    a lost one (RFC 7143 section 6.3.5). `portal` is the one that answered last. The links use *poller*,
    and the sockets that *connect* gives, or TCP.
    """

    def __init__(
        self,
        options: InitiatorOptions,
        memory: ChallengeMemory,
        target_name: str | None,
        addresses: Sequence[TargetAddress],
        isid: bytes,
        poller: Poller = NO_POLLER,
        connect: Connect | None = None,
    ) -> None:
        self._connect = connect or _tcp(options)
        self._options = options
        self._poller = poller
        self._memory = memory
        self._addresses = tuple(addresses)
        insists = target_name is not None or options.discovery_auth == "chap"
        self._config = LoginConfig(
            initiator_name=options.initiator_name,
            target_name=target_name,
            isid=isid,
            credentials=options.credentials if insists or options.discovery_auth != "none" else None,
            allow_none=not insists,
            offer=offer(options),
            alias=options.alias,
        )
        self.portal = self._addresses[0].portal
        self.peer_address = self.portal.host
        self._login: InitiatorLogin | None = None  # the one under way, None while connecting
        self._was_let_in = False
        self._has_waited = False
        self._told: set[str] = set()  # of the target's oddities

    async def __call__(self) -> Link:
        """Return a link in the full feature phase; raises what the last address came to grief with."""
        failure: IscsifsError | None = None
        for address in self._addresses:
            if failure is not None:
                log.warning("%s; trying %s", failure, address.portal)
            self._login = None
            try:
                with trio.fail_after(self._options.login_timeout), self._told_to_user(address):
                    return await self._log_in(address)
            except trio.TooSlowError:
                kind = LoginTimeout if self._login else TransportError
                seconds = self._options.login_timeout
                what = f"{address.portal}: no login within {seconds:g} s{self._step()}"
                failure = kind(what, number=errno.ETIMEDOUT)
            except IscsifsError as error:
                failure = error
            except MemoryError:
                failure = TransportError(f"{address.portal}: no memory for a login{self._step()}")
        assert failure is not None, "there is at least one address"
        raise failure

    def _told_to_user(self, address: TargetAddress) -> AbstractContextManager[None]:
        """Say what is waited for, when it is the user who waits: a session that was lost tells that once."""
        if self._has_waited:
            return nullcontext()
        self._has_waited = True

        def what() -> str:
            step = "login" if self._login else "connection"
            return f"{address.portal}: no {step} yet, trying for {self._options.login_timeout:g} s in all"

        return explained(what)

    def _step(self) -> str:
        """Where the login stands, for messages."""
        return f" ({self._login.stage.name} stage of the login)" if self._login else " (connecting)"

    async def _log_in(self, address: TargetAddress) -> Link:
        """Log in at *address*, or where it sends us; some targets get `another_try`."""
        portal = address.portal
        redirections = Redirections(portal)
        redirect: Redirect | None = None
        zone = portal.host.partition("%")[2] or None
        config = replace(self._config, target_portal_group_tag=address.tag, zone=zone)
        while True:
            self._login = None
            try:
                sock = await self._connect(portal, self._options.family)
            except TransportError as error:
                portal = _alternative(redirect, redirections, error)
                continue
            if self._options.record is not None:
                sock = tapped(sock, self._options.record)
            self._login = InitiatorLogin(config, random_bytes=os.urandom, memory=self._memory)
            connection = Connection(self._login, tracer(str(portal)), self._options.queue_depth)
            link = Link(sock, connection, self._poller)
            try:
                redirect = await link.log_in()
                if redirect is None:
                    self.portal, self.peer_address = portal, link.peer_address
                    self._let_in(self._login)
                    return link
            except (LoginRefused, TransportError) as error:
                link.close()
                again = another_try(self._login, error)
                if again is None:
                    raise self._explained(error, portal) from None
                log.info("%s: %s%s; once more with less", portal, error, self._step())
                config = again
                continue
            except ProtocolError as error:
                link.close()
                if error.pdu or self._was_let_in:
                    raise
                rule = f"{error.rule}; is this the port of an iSCSI target?"
                raise ProtocolError(rule, section=error.section) from None
            except BaseException:
                link.close()
                raise
            link.close()
            portal = redirections.follow(redirect)
            config = replace(config, target_portal_group_tag=None)  # which is that of the first portal

    def _explained(self, error: IscsifsError, portal: Portal) -> IscsifsError:
        """Return what a login at *portal* that ended in *error* fails with."""
        if not isinstance(error, TransportError):
            return error
        assert self._login is not None, "the error comes from the login"
        if isinstance(error, ConnectionClosed) and not self._was_let_in:
            refusal = dropped(self._login, error)
            if refusal is not None:
                return type(refusal)(f"{portal}: {refusal}")
        return TransportError(f"{portal}: {error}{self._step()}", number=error.number)

    def _let_in(self, login: InitiatorLogin) -> None:
        """Log what is not as it should be after a login, but each oddity of the target only once."""
        self._was_let_in = True
        for oddity in login.oddities:
            if oddity not in self._told:
                self._told.add(oddity)
                log.warning("%s: %s, against RFC 7143; going on", self.portal, oddity)
        credentials = self._options.credentials
        if credentials is not None and not login.is_proven(credentials):
            log.info(
                "%s: logged in for discovery without all of CHAP; what it tells is not proven", self.portal
            )
        agreed = {"HeaderDigest": login.parameters.header_digest, "DataDigest": login.parameters.data_digest}
        for key, there in agreed.items():
            if not there and login.config.offer[key] != ("None",):
                log.warning("%s: without %s; set %s=CRC32C at the target", self.portal, key, key)


def _alternative(redirect: Redirect | None, redirections: Redirections, failure: TransportError) -> Portal:
    """Return the next portal of *redirect* after one could not be reached; raises *failure* where there is
    none."""
    if redirect is not None:
        with suppress(RedirectionError):
            return redirections.follow(redirect)
    raise failure
