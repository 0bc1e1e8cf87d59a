"""The ledger of one unit: what of its writes is on stable storage, and what may be or is lost.

A write that the target has answered may still be lost, because the target has it in a volatile cache. Only
SYNCHRONIZE CACHE and FUA (SBC-3, Caches) end that. Until then its data stay in the map as WRITTEN: a target
that is reset or loses power may have lost them, and they are written again (`lost_cache`).

The *epoch* counts the SYNCHRONIZE CACHE commands that were begun. A write belongs to the epoch in which its
answer came. A SYNCHRONIZE CACHE that was begun in an epoch, and succeeds, makes all of that epoch and of
those before safe; what was answered while it was under way belongs to the next.

What is WRITTEN is bounded. Half-way to the bound a cache flush is due. Where this does not help
the oldest data are *let go*: a loss of the cache after that is reported as a loss of data.

`resets` counts the losses of the cache. A WRITE that was under way at one is not known to be carried out
after it, so its answer says nothing, unless it had FUA.

A *loss* is a write that had been acknowledged and failed. It is counted, and every file that was open has to
report it once.
"""

import logging

from iscsifs.errors import DataLostError, IscsifsError
from iscsifs.limits import MAX_ROUNDS, MAX_UNSYNCHRONISED
from iscsifs.units.extents import DIRTY, WRITTEN, Extent, ExtentMap

log = logging.getLogger(__name__)


class Ledger:
    """The ledger of the unit *name*, whose data are in *extents*.

    *volatile*: what the target has, it may still lose. *fua*: the unit honours FUA. At most
    *max_unsynchronised* bytes are kept as WRITTEN.

    `failures` counts the losses, `failure` is the latest of them.
    """

    def __init__(
        self,
        name: str,
        extents: ExtentMap,
        *,
        volatile: bool = True,
        fua: bool = False,
        max_unsynchronised: int = MAX_UNSYNCHRONISED,
    ) -> None:
        self.failures = 0
        self.failure: IscsifsError | None = None
        self.resets = 0
        """How often the cache of the target may have been lost."""
        self.volatile = volatile
        self.fua = fua
        self.name = name
        self._map = extents
        self._max_unsynchronised = max_unsynchronised
        self._epoch = 0
        self._owed: int | None = None  # the epoch of the last write that no cache flush has made safe
        self._let_go: int | None = None  # the epoch of the newest data that were let go
        self._fua_refused = False
        self._logged = ""  # why something was lost since the last flush

    def unit_says(self, *, volatile: bool, fua: bool) -> None:
        """Take over what the unit says of its cache, unless its answers have said otherwise."""
        self.volatile = volatile
        self.fua = fua and not self._fua_refused

    def refuse_fua(self, failure: IscsifsError) -> None:
        """Do without FUA from now on, which the unit offers and refuses with *failure*."""
        if not self._fua_refused:
            self._fua_refused = True
            log.warning("%s; from now on SYNCHRONIZE CACHE follows a synchronous write", failure)
        self.fua = False

    @property
    def needs_flush(self) -> bool:
        """Whether there was a write, even one that failed, that no SYNCHRONIZE CACHE has made safe."""
        return self._map.unwritten > 0 or self._owed is not None

    # The end of a WRITE.

    def touched(self) -> None:
        """Note that the target may have something of a WRITE in its cache."""
        self._owed = self._epoch

    def written(self, extents: list[Extent], *, fua: bool) -> bool:
        """Note that the target has *extents*, with *fua* on stable storage; return whether a cache flush is
        due."""
        is_due = False
        if fua or not self.volatile:
            self._map.remove(extents)
        else:
            for extent in extents:
                # Of a synchronous write as well: if it fails when it is written again, its writer may be
                # waiting for SYNCHRONIZE CACHE, and learns of that from the loss.
                extent.acknowledged = True
                extent.covers = False
                extent.epoch = self._epoch
                extent.repeats = 0
                self._map.change(extent, WRITTEN)
            is_due = self._map.unsynchronised > self._max_unsynchronised // 2
            if is_due:
                self.let_go(self._max_unsynchronised)
        if not fua:
            self._owed = self._epoch
        return is_due

    def lost_under_way(self, extents: list[Extent]) -> IscsifsError | None:
        """Note that the target has had *extents*, but perhaps before it has lost its cache: they have to be
        sent again, unless that has happened too often in a row; then return the failure."""
        if any(extent.repeats == MAX_ROUNDS for extent in extents):
            return self.always_lost()
        for extent in extents:
            extent.acknowledged = True
            extent.covers = False
            extent.repeats += 1
        return None

    def failed(self, extents: list[Extent], failure: IscsifsError) -> None:
        """Note that *extents* cannot be written because of *failure*."""
        acknowledged = any(extent.acknowledged for extent in extents)
        if acknowledged:
            self.report(failure)
        elif any(extent.covers for extent in extents):
            self._let_go = self._epoch  # older data may still be lost, and are kept no longer
        self._map.remove(extents)

    # SYNCHRONIZE CACHE.

    def begin_flush(self) -> int:
        """Note that a SYNCHRONIZE CACHE begins; return its epoch."""
        self._epoch += 1
        return self._epoch - 1

    def flushed(self, epoch: int) -> None:
        """Note that the SYNCHRONIZE CACHE of *epoch* has succeeded, and that no cache was lost meanwhile."""
        self._map.remove([extent for extent in self._map.written if extent.epoch <= epoch])
        self._logged = ""
        if self._owed is not None and self._owed <= epoch:
            self._owed = None
        if self._let_go is not None and self._let_go <= epoch:
            self._let_go = None

    def let_go(self, bound: int) -> None:
        """Keep at most *bound* bytes as WRITTEN, the newest."""
        left = self._map.unsynchronised
        oldest: list[Extent] = []
        for extent in self._map.written:
            if left <= bound:
                break
            oldest.append(extent)
            left -= len(extent)
            self._let_go = max(extent.epoch, self._let_go or 0)
        self._map.remove(oldest)

    # Losses.

    def lost_cache(self) -> None:
        """The target may have lost what it had not synchronised: that is DIRTY again (SPC, unit attention
        29h)."""
        self.resets += 1
        if self._let_go is not None:
            self._let_go = None
            reason = "the target may have lost its cache, and more was in it than is kept here"
            self.report(DataLostError(f"{self.name}: {reason}"))
        for extent in self._map:
            extent.stand_in()
        for extent in list(self._map.written):
            self._map.change(extent, DIRTY)

    def always_lost(self) -> DataLostError:
        """Return the failure for a target that has lost its cache too often in a row."""
        return DataLostError(f"{self.name}: the target loses its cache over and over")

    def report(self, failure: IscsifsError) -> None:
        """Count a loss of writes that had been acknowledged; log why, once for each reason in a row."""
        if str(failure) != self._logged:
            self._logged = str(failure)
            log.error("acknowledged writes are lost: %s", failure, extra={"kind": failure.kind})
        self.failures += 1
        self.failure = failure

    def give_up(self, failure: IscsifsError) -> None:
        """Forget everything because of *failure*, but for what is under way.

        That counts as lost from now on as well: whoever is told of *failure* has to be told of all of it.
        """
        if any(extent.acknowledged or extent.covers for extent in self._map):
            self.report(failure)
        sending = self._map.sending
        for extent in sending:
            extent.acknowledged = extent.covers = False  # that was told just now
        for extent in self._map.waiting:
            for barrier in extent.barriers:
                barrier.failure = failure
        self._map.remove([*self._map.waiting, *self._map.written])

    def disown(self, failure: IscsifsError) -> None:
        """Give everything up because of *failure*; nothing of before counts as written any more."""
        self.resets += 1
        if self._let_go is not None:
            self._let_go = None
            self.report(failure)
        self.give_up(failure)
