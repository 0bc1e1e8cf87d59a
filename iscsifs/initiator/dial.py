"""From an address to a logged-in connection: TCP, redirections, and the second try that some targets need."""

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import replace

import trio

from iscsifs.errors import IscsifsError, LoginError, LoginRefused, TransportError
from iscsifs.initiator.link import Link
from iscsifs.initiator.options import Digests, InitiatorOptions
from iscsifs.iscsi.chap import ChallengeMemory
from iscsifs.iscsi.connection import Connection
from iscsifs.iscsi.keys import INITIATOR_OFFER, Value
from iscsifs.iscsi.login import InitiatorLogin, LoginConfig, Redirections, retry_with_md5
from iscsifs.iscsi.names import Portal, TargetAddress

_DIGESTS: dict[Digests, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": (("None",), ("None",)),
    "header": (("CRC32C", "None"), ("None",)),
    "data": (("None",), ("CRC32C", "None")),
    "all": (("CRC32C", "None"), ("CRC32C", "None")),
}

_REMEDIES = {
    errno.ECONNREFUSED: "is a target running there, and is the port right?",
    errno.EHOSTUNREACH: "is the host up, and is there a route to it?",
    errno.ENETUNREACH: "is there a route to it?",
    errno.ETIMEDOUT: "is the host up, and does a firewall drop the packets?",
}


def offer(options: InitiatorOptions) -> dict[str, Value]:
    """Return the operational keys to offer, with the digests that are wanted where the target has them."""
    header, data = _DIGESTS[options.digests]
    return {**INITIATOR_OFFER, "HeaderDigest": header, "DataDigest": data, **options.offer}


class Dialler:
    """Logs in to one target, or for discovery to none, again and again as the same initiator port.

    The *addresses* are tried in their order. *isid* stays the same, so that a new session takes the place of
    a lost one (RFC 7143 section 6.3.5). `portal` is the one that answered last.
    """

    def __init__(
        self,
        options: InitiatorOptions,
        memory: ChallengeMemory,
        target_name: str | None,
        addresses: Sequence[TargetAddress],
        isid: bytes,
    ) -> None:
        self._options = options
        self._memory = memory
        self._addresses = tuple(addresses)
        self._target_name = target_name
        self._config = LoginConfig(
            initiator_name=options.initiator_name,
            target_name=target_name,
            isid=isid,
            credentials=options.credentials,
            offer=offer(options),
        )
        self.portal = self._addresses[0].portal
        self.peer_address = self.portal.host

    async def __call__(self) -> Link:
        """Return a link in the full feature phase; raises what the last address came to grief with."""
        failures: list[IscsifsError] = []
        for address in self._addresses:
            try:
                with trio.fail_after(self._options.login_timeout):
                    return await self._log_in(address)
            except trio.TooSlowError:
                seconds = self._options.login_timeout
                failures.append(LoginError(f"{address.portal}: no login within {seconds:g} seconds"))
            except IscsifsError as error:
                failures.append(error)
        raise failures[-1]

    async def _log_in(self, address: TargetAddress) -> Link:
        """Log in at *address*, or where it sends us; with MD5 alone if another algorithm was
        misunderstood."""
        portal = address.portal
        redirections = Redirections(portal)
        zone = portal.host.partition("%")[2] or None
        config = replace(self._config, target_portal_group_tag=address.tag, zone=zone)
        while True:
            sock = await connect(portal, self._options.family)
            login = InitiatorLogin(config, random_bytes=os.urandom, memory=self._memory)
            link = Link(sock, Connection(login), str(portal))
            try:
                redirect = await link.log_in()
            except LoginRefused as refused:
                link.close()
                again = None if len(config.algorithms) == 1 else retry_with_md5(login, refused)
                if again is None:
                    raise
                config = again
                continue
            except BaseException:
                link.close()
                raise
            if redirect is None:
                self.portal = portal
                self.peer_address = sock.getpeername()[0]
                return link
            link.close()
            portal = redirections.follow(redirect)


async def connect(portal: Portal, family: socket.AddressFamily) -> socket.socket:
    """Return a non-blocking TCP socket connected to *portal*, over addresses of *family*.

    Raises TransportError, which names the portal, the reason and what to look at.
    """
    try:
        found = await trio.socket.getaddrinfo(portal.host, portal.port, family, socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise TransportError(f"{portal.host}: {error.strerror}; check the name of the host") from None
    failure = 0
    for address_family, kind, protocol, _, address in found:
        sock = socket.socket(address_family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            failure = sock.connect_ex(address)
            if failure == errno.EINPROGRESS:
                await trio.lowlevel.wait_writable(sock)
                failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except BaseException:
            sock.close()
            raise
        if not failure:
            return sock
        sock.close()
    remedy = _REMEDIES.get(failure)
    raise TransportError(f"{portal}: {os.strerror(failure)}" + (f"; {remedy}" if remedy else ""))
