"""Who gets in: all that discovery and targets may ask for, and all that a user may give, at real targets.

Each cell is a command line as a user types it, with the name of a host. It either mounts the disk, or it says
in one line what is wrong.
"""

import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import ClassVar

import pytest

from support.embedded import Embedded
from support.mounting import Mounted, iscsifs
from support.targets import Chap, Daemon, Istgt, Serve, Target, Tgt, Unit, make_image

pytestmark = [pytest.mark.real, pytest.mark.mount]

NAME = "iqn.2026-01.example:"
ONE_WAY = Chap("alice", "secret of alice")
MUTUAL = Chap("alice", "secret of alice", "the-target", "secret of target")
ASKS: dict[str, Chap | None] = {"open": None, "chap": ONE_WAY, "mutual": MUTUAL}
GIVES = ("nobody", "alice", "alice and a proof")


class Apart(Embedded):
    """The embedded target with an authentication of its own for discovery, which its command has not."""

    _SCRIPT: ClassVar[str] = """
import sys, trio
from iscsifs.iscsi.names import Portal
from iscsifs.target.device import Device
from iscsifs.target.disk import Disk
from iscsifs.target.login import TargetConfig
from iscsifs.target.server import Server
from iscsifs.target.store import Store
from iscsifs.target.unit import Identity

async def serve(port, name, discovery, target):
    device = Device(name, {0: Disk(Store.memory(1 << 20), Identity("memory"))})
    portal = Portal("127.0.0.1", port)
    config = TargetConfig(target_names=frozenset(), secrets=target[0], own=target[1], discovery=discovery)
    async with Server([device], portals=[portal], config=config):
        await trio.sleep_forever()

trio.run(serve, int(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), eval(sys.argv[4]))
"""

    def _command(self) -> list[str]:
        (target,) = self.targets
        access = [repr(_access(chap)) for chap in (self.discovery, target.chap)]
        return [sys.executable, "-c", self._SCRIPT, str(self.port), target.name, *access]


def _access(chap: Chap | None) -> tuple[dict[str, bytes] | None, tuple[str, bytes] | None]:
    if chap is None:
        return None, None
    own = (chap.target_user, chap.target_secret.encode()) if chap.target_user else None
    return {chap.user: chap.secret.encode()}, own


_REFUSED = "the target refused the login: authentication failure; "
SENTENCES = {
    "asks": "AuthMethod: the target asks for a user; give -u USER",
    "asks 0201": _REFUSED + "it may ask for a user: give -u USER (0201h)",
    "takes none": "AuthMethod: the target takes no CHAP; leave out the user",
    "takes none 0201": _REFUSED + "it may take no CHAP: leave out the user (0201h)",
    "no proof": _REFUSED
    + 'check the user "alice" and the secret, and that the target has a secret to prove itself (0201h)',
    "wants mutual": _REFUSED
    + 'check the user "alice" and the secret, and whether it demands mutual CHAP (0201h)',
    "wants mutual there": _REFUSED
    + 'check the user "alice" and the secret for discovery, and whether it demands mutual CHAP (0201h)',
}

# What discovery asks for | what the target asks for | what the user gives | which of the two refuses
# | what the embedded target, tgt and istgt say then; nothing where the disk is mounted.
# istgt demands of initiators that they ask for the proof that it has.
MATRIX = """
open   | open   | nobody            |           |            |                 |
open   | open   | alice             | target    | takes none | takes none 0201 | takes none
open   | open   | alice and a proof | target    | takes none | takes none 0201 | takes none
open   | chap   | nobody            | target    | asks 0201  | asks 0201       | asks
open   | chap   | alice             |           |            |                 |
open   | chap   | alice and a proof | target    | no proof   | no proof        | no proof
open   | mutual | nobody            | target    | asks 0201  | asks 0201       | asks
open   | mutual | alice             | target    |            |                 | wants mutual
open   | mutual | alice and a proof |           |            |                 |
chap   | open   | nobody            | discovery | asks 0201  | asks 0201       | asks
chap   | open   | alice             | target    | takes none | takes none 0201 | takes none
chap   | open   | alice and a proof | target    | takes none | takes none 0201 | takes none
chap   | chap   | nobody            | discovery | asks 0201  | asks 0201       | asks
chap   | chap   | alice             |           |            |                 |
chap   | chap   | alice and a proof | target    | no proof   | no proof        | no proof
chap   | mutual | nobody            | discovery | asks 0201  | asks 0201       | asks
chap   | mutual | alice             | target    |            |                 | wants mutual
chap   | mutual | alice and a proof |           |            |                 |
mutual | open   | nobody            | discovery | asks 0201  | asks 0201       | asks
mutual | open   | alice             | target    | takes none | takes none 0201 | wants mutual there
mutual | open   | alice and a proof | target    | takes none | takes none 0201 | takes none
mutual | chap   | nobody            | discovery | asks 0201  | asks 0201       | asks
mutual | chap   | alice             | discovery |            |                 | wants mutual there
mutual | chap   | alice and a proof | target    | no proof   | no proof        | no proof
mutual | mutual | nobody            | discovery | asks 0201  | asks 0201       | asks
mutual | mutual | alice             | discovery |            |                 | wants mutual there
mutual | mutual | alice and a proof |           |            |                 |
"""
# What is said to a user who waits: istgt is busy with each login for a second, and others are at it too.
WAITING = re.compile(
    r"iscsifs: waiting for [0-9.:]+: no \w+ yet, trying for 15 s in all( \([0-9]+ more like this in .*\))?$"
)

COLUMNS: dict[type[Daemon], int] = {Embedded: 4, Tgt: 5, Istgt: 6}


def _expected(kind: type[Daemon]) -> dict[tuple[str, str, str], str]:
    """Return what becomes of each cell at a daemon of *kind*."""
    expected = {}
    for line in MATRIX.strip().splitlines():
        row = [word.strip() for word in line.split("|")]
        discovery, target, gives, who, *_ = row
        said = row[COLUMNS[kind]]
        if said.endswith("there"):
            who = "discovery"
        name = "PORTAL" if who == "discovery" else f"127.0.0.1: {NAME}{target}"
        expected[discovery, target, gives] = f"4 iscsifs: {name}: {SENTENCES[said]}" if said else "mounted"
    return expected


def test_the_matrix(any_target: type[Daemon], serve: Serve, tmp_path: Path) -> None:
    """What discovery asks for, what the target asks for, and what the user gives: all that there is."""
    daemons = _daemons(any_target, tmp_path)
    for daemon in dict.fromkeys(daemons.values()):
        serve(daemon)
    options = _options(tmp_path)
    cells = list(product(ASKS, ASKS, GIVES))

    def outcome(cell: tuple[str, str, str]) -> str:
        discovery, target, gives = cell
        path = tmp_path / "-".join(cell).replace(" ", "-")
        path.mkdir()
        portal = daemons[discovery, target].portal
        return _mount(path, *options[gives], "-t", f"*:{target}", portal).replace(portal, "PORTAL")

    with ThreadPoolExecutor(6) as pool:
        outcomes = dict(zip(cells, pool.map(outcome, cells), strict=True))
    assert outcomes == _expected(any_target)


# What --discovery-auth makes of it, with -D: the last column are words of the complaint.
DISCOVERY = """
open   | alice             | chap | no CHAP|leave out --discovery-auth chap
open   | alice and a proof | chap | no CHAP|leave out --discovery-auth chap
open   | alice and a proof | none |
chap   | alice             | chap |
chap   | alice             | none | ask|give -u USER
chap   | alice and a proof | chap | for discovery|a secret to prove itself
chap   | alice and a proof | auto |
mutual | alice and a proof | chap |
"""


def test_discovery_by_itself(any_target: type[Daemon], serve: Serve, tmp_path: Path) -> None:
    daemons = _daemons(any_target, tmp_path)
    options = _options(tmp_path)
    for asks in ASKS:
        serve(daemons[asks, asks])
    for line in DISCOVERY.strip().splitlines():
        asks, gives, how, *words = [word.strip() for word in line.split("|")]
        daemon = daemons[asks, asks]
        done = iscsifs("-D", *options[gives], "--discovery-auth", how, "-t", f"*:{asks}", daemon.portal)
        if words == [""]:
            assert (done.returncode, done.stderr) == (0, ""), line
            assert done.stdout == f"127.0.0.1: {daemon.portal},1 {NAME}{asks}\n"
        else:
            (complaint,) = done.stderr.splitlines()
            assert (done.returncode, done.stdout) == (4, ""), line
            assert complaint.startswith(f"iscsifs: {daemon.portal}: ")
            assert all(word in complaint for word in words), line


def _daemons(kind: type[Daemon], directory: Path) -> dict[tuple[str, str], Daemon]:
    """Return the daemon for each pair of what discovery and the target ask for."""
    if kind is Embedded:
        return {
            (discovery, target): Apart(directory, _target(directory, target), discovery=ASKS[discovery])
            for discovery, target in product(ASKS, ASKS)
        }
    shared = {
        discovery: kind(directory, *(_target(directory, target) for target in ASKS), discovery=chap)
        for discovery, chap in ASKS.items()
    }
    return {(discovery, target): shared[discovery] for discovery, target in product(ASKS, ASKS)}


def _target(directory: Path, asks: str) -> Target:
    image = directory / f"{asks}{len(list(directory.glob('*.img')))}.img"
    return Target(NAME + asks, [Unit(make_image(image, 8 << 20))], ASKS[asks])


def _options(directory: Path) -> dict[str, Sequence[object]]:
    """Return the options for all that users may give."""
    for name, secret in ("secret", MUTUAL.secret), ("target-secret", MUTUAL.target_secret):
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(secret)
    alice = ["-u", MUTUAL.user, "--secret-file", directory / "secret"]
    proof = ["--target-user", MUTUAL.target_user, "--target-secret-file", directory / "target-secret"]
    return dict(zip(GIVES, ([], alice, [*alice, *proof]), strict=True))


def _mount(path: Path, *arguments: object) -> str:
    """Run the command; return "mounted", or its exit status and what it says."""
    mounted = Mounted(path)
    done = iscsifs(*arguments, path)
    lines = [line for line in done.stderr.splitlines() if not WAITING.match(line)]
    if done.returncode:
        assert not mounted.is_mounted()
        return f"{done.returncode} " + "\n".join(lines)
    try:
        assert mounted.is_mounted()
        assert lines == []
        (target,) = (path / "127.0.0.1").iterdir()
        assert mounted.storage(target.name).stat().st_size
        mounted.unmount()
    finally:
        mounted.close()
    return "mounted"
