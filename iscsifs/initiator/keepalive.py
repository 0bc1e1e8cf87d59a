"""A keepalive: pings a silent target, and fails its link if there is no answer (RFC 7143 section 11.18)."""

from iscsifs.errors import TransportError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.transport.link import Link


class Keepalive:
    """The keepalive timer of *link*, which has received something at *now*.

    Every received byte restarts the timer. While TCP still acknowledges bytes that were queued before a ping,
    the ping has not arrived, and its time-out does not run.
    """

    def __init__(self, link: Link, options: InitiatorOptions, now: float) -> None:
        self._link = link
        self._options = options
        self._silent_since = now
        self._pinged_at: float | None = None
        self._delivered = self._backlog = 0

    def check(self, now: float) -> None:
        """Ping a silent target, or fail the link after the time-out of a ping; called about every second."""
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
