"""The initiators of a mount: credentials belong to one, and sources may differ in them."""

import trio

from iscsifs.initiator.options import InitiatorOptions
from iscsifs.service.network import Initiator, Network
from iscsifs.transport.polling import Poller


class Initiators:
    """One initiator for each set of options, opened when it is first asked for. They run in *nursery*."""

    def __init__(self, network: Network, poller: Poller, nursery: trio.Nursery) -> None:
        self._network = network
        self._poller = poller
        self._nursery = nursery
        self._by_options: dict[InitiatorOptions, Initiator] = {}
        self._opening = trio.Lock()
        self._closing = trio.Event()

    async def get(self, options: InitiatorOptions) -> Initiator:
        """Return the initiator for *options*."""
        async with self._opening:
            if options not in self._by_options:
                self._by_options[options] = await self._nursery.start(self._run, options)
            return self._by_options[options]

    async def _run(self, options: InitiatorOptions, *, task_status: trio.TaskStatus[Initiator]) -> None:
        """Keep an initiator: what opens it has to close it, and whoever asks for one may be gone by then."""
        async with self._network.open_initiator(options, self._poller) as initiator:
            task_status.started(initiator)
            await self._closing.wait()

    def close(self) -> None:
        """Have all of them log out of everything."""
        self._closing.set()
