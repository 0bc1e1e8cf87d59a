"""Whether the target is still there: pings where it is silent (RFC 7143 section 11.18)."""

from iscsifs.errors import TransportError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.transport.link import Link


class Keepalive:
    """The signs of life on *link*, on which something has come at *now*.

    Any byte is one. So is every byte that the other end has taken of what waits to be sent: there the ping
    has not arrived yet.
    """

    def __init__(self, link: Link, options: InitiatorOptions, now: float) -> None:
        self._link = link
        self._options = options
        self._silent_since = now
        self._pinged_at: float | None = None
        self._delivered = self._backlog = 0

    def look(self, now: float) -> None:
        """Ping a silent target, and end the link to one that stays silent; to be called about every
        second."""
        connection, options = self._link.connection, self._options
        delivered, backlog = self._link.progress()
        draining = self._backlog > 0 and delivered > self._delivered
        self._delivered, self._backlog = delivered, backlog
        if connection.heard:
            connection.heard = False
            self._silent_since = now
            self._pinged_at = None
        elif self._pinged_at is not None:
            if draining:
                self._pinged_at = now
            elif now - self._pinged_at >= options.ping_timeout:
                silence = now - self._silent_since
                self._link.fail(TransportError(f"no answer to a ping, and nothing else for {silence:.0f} s"))
        elif options.ping_interval and now - self._silent_since >= options.ping_interval:
            self._pinged_at = now
            self._link.ping()
