"""What cannot be done: one line that names the thing and a remedy, the exit status, nothing left behind."""

import os
import socket
import socketserver
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template
from threading import Thread

import pytest

from support.mounting import MountHosts, iscsifs, run
from support.targets import Chap, Serve, Target, Tgt, Unit

NAME = "iqn.2026-01.example:disk"
LOCKED = "iqn.2026-01.example:locked"

pytestmark = [pytest.mark.real, pytest.mark.mount]

# The command line, the exit status of iscsifs(8), and what the line has to say: the thing, and a remedy.
REFUSED = {
    "nothing listens": ("127.0.0.1:$closed $mnt", 3, ["127.0.0.1:$closed", "refused", "right"]),
    "nothing listens there": ("127.77.0.1:$port $mnt", 3, ["127.77.0.1:$port", "refused", "right"]),
    "no such host": ("no-such-host.invalid $mnt", 3, ["no-such-host.invalid", "DNS"]),
    "no such host of a target": ("iscsi://no-such-host.invalid/$name $mnt", 3, ["no-such-host.invalid"]),
    "no address of this family": ("-6 127.0.0.1:$port $mnt", 3, ["127.0.0.1"]),
    "no such target": ("iscsi://$portal/${name}2 $mnt", 5, ["${name}2", "not found", "-D"]),
    "no target's port": (
        "127.0.0.1:$web $mnt",
        1,
        ["127.0.0.1:$web", "port of an iSCSI target?"],
    ),
    "silent port": ("-o login_timeout=1 127.0.0.1:$silent $mnt", 3, ["127.0.0.1:$silent", "waits longer"]),
    "link-local address": ("fe80::1 $mnt", 2, ["fe80::1", "[fe80::1%eth0]"]),
    "what contradicts": ("-u alice -o user=bob $portal $mnt", 2, ["--user", "leave one of them out"]),
    "list and unmount": ("-D --unmount $portal", 2, ["-D", "leave one of them out"]),
    "nothing to unmount": ("--unmount $mnt", 2, ["$mnt", "nothing is mounted"]),
    "max_read": ("-o max_read=4096 $portal $mnt", 2, ["max_read", "readahead=KiB"]),
    "log without a directory": ("--log $missing/log $portal $mnt", 2, ["$missing/log", "No such file"]),
    "no such unit": ("iscsi://$portal/$name/77 $mnt", 5, ["77", "leave the number out"]),
    "no such pattern": ("-t *:nothing $portal $mnt", 5, ["*:nothing", "-D"]),
    "wrong secret": ("-u alice --secret-file $wrong iscsi://$portal/$locked $mnt", 4, ["$locked", "0201"]),
    "no credentials": ("iscsi://$portal/$locked $mnt", 4, ["$locked", "give -u USER"]),
    "no terminal to ask on": ("-u alice $portal $mnt", 2, ["alice", "--secret-file FILE"]),
    "readable secret": ("-u alice --secret-file $readable $portal $mnt", 2, ["$readable", "chmod 600"]),
    "directory of secrets": ("-u alice --secret-file $directory $portal $mnt", 2, ["$directory", "file"]),
    "no such secret": ("-u alice --secret-file $missing $portal $mnt", 2, ["$missing", "No such file"]),
    "device of secrets": ("-u alice --secret-file /dev/zero $portal $mnt", 2, ["/dev/zero", "not a file"]),
    "empty secret": ("-u alice --secret-file $empty $portal $mnt", 2, ["$empty", "one line"]),
    "short secret": ("-u alice --secret-file $short $portal $mnt", 2, ["12"]),
    "secret on the command line": ("alice:hushhushhush@$portal $mnt", 2, ["--secret-file"]),
    "no user": ("-a chap $portal $mnt", 2, ["-u USER"]),
    "no mount point": ("$portal $missing", 2, ["$missing", "mkdir"]),
    "full mount point": ("$portal $full", 2, ["$full", "empty"]),
    "file as mount point": ("$portal $short", 2, ["$short", "not a directory", "give"]),
    "mount point in use": ("$portal $used", 2, ["$used", "iscsifs --unmount $used"]),
    "no operands": ("", 2, ["iscsifs -h"]),
    "only one operand": ("$portal", 2, ["mount point", "iscsifs -h"]),
    "bad target name": ("iscsi://$portal/iqn.nonsense $mnt", 2, ["iqn.nonsense"]),
    "bad LUN": ("iscsi://$portal/$name/x $mnt", 2, ["x", "number"]),
    "bad initiator name": ("-i me $portal $mnt", 2, ['"me"', "iqn."]),
    "unknown option": ("--nonsense $portal $mnt", 2, ["--nonsense", "iscsifs -h"]),
    "unknown mount option": ("-o nonsense $portal $mnt", 2, ["nonsense", "Mount options"]),
    "bad digest": ("--digest md5 $portal $mnt", 2, ["md5", "header"]),
    "port of no number": ("127.0.0.1:iscsi $mnt", 2, ["127.0.0.1:iscsi", "number"]),
    "port too large": ("127.0.0.1:65536 $mnt", 2, ["127.0.0.1:65536", "65535"]),
    "port zero": ("-p 0 127.0.0.1 $mnt", 2, ["-p", "65535"]),
    "bad address": ("[::1 $mnt", 2, ["[::1"]),
    "bare IPv6 address with port": ("::1:$port:x $mnt", 2, ["::1"]),
    "nothing to list": ("-D", 2, ["iscsifs -h"]),
    "list one target": ("-D iscsi://$portal/$name", 2, ["-D"]),
    "list nothing": ("-D 127.0.0.1:$closed", 3, ["127.0.0.1:$closed", "refused"]),
}


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a server that speaks another protocol."""

    class Server(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(512, b"."))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def values(
    tmp_path: Path, image: Path, serve: Serve, mount_hosts: MountHosts, web: int, silent: int
) -> dict[str, str]:
    """A target, files and directories for the placeholders of the table."""
    chap = Chap("alice", "secret of alice")
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image)]), Target(LOCKED, [Unit(image)], chap)))
    used = mount_hosts(f"iscsi://{tgt.portal}/{NAME}")
    secrets = {
        "wrong": ("not his secret", 0o600),
        "readable": ("secret of alice", 0o640),
        "empty": ("", 0o600),
        "short": ("only eleven", 0o600),
    }
    for name, (secret, mode) in secrets.items():
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(mode)
    for name in ("mnt", "directory", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/something").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    names = ("mnt", "directory", "full", "missing", *secrets)
    return {name: str(tmp_path / name) for name in names} | {
        "closed": str(closed),
        "silent": str(silent),
        "web": str(web),
        "locked": LOCKED,
        "name": NAME,
        "port": str(tgt.port),
        "portal": tgt.portal,
        "used": str(used.path),
    }


def test_what_cannot_be_done_is_told_in_one_line(values: dict[str, str], tmp_path: Path) -> None:
    def fault(row: tuple[str, tuple[str, int, list[str]]]) -> str | None:
        what, (command, status, words) = row
        done = iscsifs(*(Template(word).substitute(values) for word in command.split()))
        wanted = [Template(word).substitute(values) for word in words]
        lines = done.stderr.splitlines()
        good = (
            done.returncode == status
            and done.stdout == ""
            and len(lines) == 1
            and lines[0].startswith("iscsifs: ")
            and all(word in lines[0] for word in wanted)
        )
        return None if good else f"{what}: {done.returncode} (for {status}) {done.stderr!r} for {wanted}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [fault for fault in pool.map(fault, REFUSED.items()) if fault]
    assert not faults, "\n".join(faults)
    assert list(Path(values["mnt"]).iterdir()) == []
    # What was mounted before is mounted still, and nothing else is.
    assert Path("/proc/self/mounts").read_text().count(f" {tmp_path}/") == 1
    run("fusermount3", "-u", values["used"])
