"""The targets that a server has told of, and when one of them is believed to be gone."""

from collections.abc import Collection, Mapping

from iscsifs.isns.targets import IsnsTarget
from iscsifs.limits import ISNS_POLL_INTERVAL, MAX_TARGETS


class KnownTargets:
    """The set of targets, as answers change it.

    A target that an answer leaves out is gone. Unless the server has lost its memory (`distrust`): then a
    target leaves when answers have left it out for ISNS_POLL_INTERVAL, or when a notification names it.
    """

    def __init__(self) -> None:
        self._targets: dict[str, IsnsTarget] = {}
        self._reported: dict[str, IsnsTarget] | None = None
        self._missing: dict[str, float] = {}  # since when answers leave it out
        self._is_distrusted = False

    def distrust(self) -> None:
        """The server has lost our registration, and perhaps those of the targets, which will come back."""
        self._is_distrusted = True

    @property
    def recheck_at(self) -> float | None:
        """When the next answer is wanted because of targets that are missing, None where none is."""
        return min(self._missing.values()) + ISNS_POLL_INTERVAL if self._missing else None

    def update(
        self,
        found: Mapping[str, IsnsTarget],
        now: float,
        *,
        named: Collection[str] = (),
        is_whole: bool = True,
    ) -> None:
        """Take a whole answer, or with *is_whole* False one that may lack targets.

        Notifications have told of the targets that are *named*.
        """
        for name in found:
            self._missing.pop(name, None)
        if is_whole:
            for name in self._targets.keys() - found.keys():
                self._leave_out(name, now, is_believed=not self._is_distrusted or name in named)
            self._is_distrusted = self._is_distrusted and (bool(self._missing) or not found)
        for name, target in found.items():
            self._put(name, target)

    def update_one(self, name: str, target: IsnsTarget | None) -> None:
        """Take the answer about *name*, of which a notification has told; None: it is not there."""
        self._missing.pop(name, None)
        if target is not None:
            self._put(name, target)
        else:
            self._targets.pop(name, None)

    def take_change(self) -> tuple[IsnsTarget, ...] | None:
        """Return the targets, None where they are those of the last time."""
        if self._targets == self._reported:
            return None
        self._reported = dict(self._targets)
        return tuple(self._targets.values())

    def _put(self, name: str, target: IsnsTarget) -> None:
        """Add *target*, or take its new portals; where there are MAX_TARGETS a missing one makes room."""
        if name not in self._targets and len(self._targets) >= MAX_TARGETS:
            if not self._missing:
                return
            missing, _ = self._missing.popitem()
            del self._targets[missing]
        self._targets[name] = target

    def _leave_out(self, name: str, now: float, *, is_believed: bool) -> None:
        """Take note that *name* is missing in an answer; forget it, if that is believed."""
        since = self._missing.setdefault(name, now)
        if is_believed or now - since >= ISNS_POLL_INTERVAL:
            self._missing.pop(name, None)
            del self._targets[name]
