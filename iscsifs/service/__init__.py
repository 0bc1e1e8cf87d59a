"""The living set of targets: sources -> targets -> units -> tree.

`sessions` joins sessions with the units behind them. `find` asks sources which targets are wanted, `attach`
logs in to many at once, `living` keeps what is attached and shows it in the tree, `drain` puts everything on
stable storage at the end. `network` says what `living` asks of sessions, so that a test can have its own.
"""

from iscsifs.service.sessions import Initiator as Initiator
from iscsifs.service.sessions import ManagedTarget as ManagedTarget
from iscsifs.service.sessions import discover as discover
from iscsifs.service.sessions import new_isid as new_isid
from iscsifs.service.sessions import open_initiator as open_initiator
