"""iSNS servers as sources of the living set."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from iscsifs.discovery.isns import IsnsSource
from iscsifs.discovery.source import Report, Source, Wanted
from iscsifs.hosts import NameServer
from iscsifs.isns.client import ClientConfig
from iscsifs.monitor.events import Events

log = logging.getLogger(__name__)


def isns_source(
    server: NameServer, wants: Callable[[str], bool], say: Callable[[str], None] = log.warning
) -> Source:
    """Return the source of the targets of *server* whose names *wants* takes; *say* gets its events.

    A target that was named by itself is wanted whatever *wants* says.
    """
    config = ClientConfig(server.options.initiator_name)
    if server.target is None:
        return IsnsSource(server.portal, config, say, wants)
    source = IsnsSource(server.portal, config, say, lambda name: name == server.target)
    return OneUnit(source, server.lun)


def teller(events: Events) -> Callable[[str], None]:
    """Return what tells of a name server, in the log and in *events*."""

    def tell(sentence: str) -> None:
        log.warning("%s", sentence)
        events.add("source", sentence)

    return tell


def trouble(source: Source) -> str | None:
    """Return why a name server has not told yet which targets there are; None for any other source."""
    if isinstance(source, OneUnit):
        source = source.source
    return source.trouble if isinstance(source, IsnsSource) else None


class OneUnit:
    """The targets that *source* tells of, with only the unit *lun* of each; with None they have all."""

    def __init__(self, source: Source, lun: str | None) -> None:
        self.source = source
        self._luns = None if lun is None else frozenset({lun})

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.source.name

    async def run(self, report: Report) -> None:
        """Run the source; raises what it raises."""

        def narrowed(wanted: Sequence[Wanted]) -> None:
            report([replace(each, luns=self._luns) for each in wanted])

        await self.source.run(narrowed)
