"""A target that was logged in to: where it is, and the paths to its units."""

from iscsifs.initiator.dial import Dialler
from iscsifs.initiator.path import LunPath
from iscsifs.initiator.session import Session
from iscsifs.iscsi.names import Portal


class Target:
    """The target *name*, reached by *session*, for which *dialler* logs in."""

    def __init__(self, name: str, dialler: Dialler, session: Session) -> None:
        self.name = name
        self.session = session
        self._dialler = dialler

    @property
    def portal(self) -> Portal:
        """The portal that was asked for the session, or the one that it was sent to."""
        return self._dialler.portal

    @property
    def address(self) -> str:
        """The numeric address of the portal."""
        return self._dialler.peer_address

    @property
    def tag(self) -> int | None:
        """The portal group tag, None where the target did not say it."""
        return self.session.link.connection.parameters.target_portal_group_tag

    @property
    def logins(self) -> int:
        """How many logins there were."""
        return self.session.logins

    def path(self, lun: int) -> LunPath:
        """Return a path to the unit of the 64-bit *lun*."""
        return LunPath(self.session, lun)
