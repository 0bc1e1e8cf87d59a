"""What README and the manual page show is typed here, in a machine of its own: it has to work as printed.

That machine has its own network, mounts and processes, and forgets them; loop devices are the only thing that
it shares with this one.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.machine import require_programs
from support.mounting import AS_USER

TOP = Path(__file__).resolve().parents[1]
README = TOP / "README.rst"
PAGE = TOP / "man" / "iscsifs.8"
TIME = 120  # seconds that a session may take
MIB = 1 << 20
NOBODY = 65534
LOOP = "/dev/loop0"  # as it is printed; others may have that one
SYSTEM_BIN = "/usr/local/sbin"  # mount(8) has a PATH of its own

pytestmark = [pytest.mark.real, pytest.mark.mount, pytest.mark.usefixtures("require_root")]


class Step(NamedTuple):
    """A command behind its prompt, and what is printed below it."""

    command: str
    output: list[str]


def steps(block: str) -> list[Step]:
    """Take a session apart; a line that ends with a backslash goes on in the next one."""
    found: list[Step] = []
    for line in re.sub(r" *\\\n\s*", " ", block).splitlines():
        if line.startswith(("$ ", "# ")):
            found.append(Step(line[2:], []))
        else:
            found[-1].output.append(line)
    return found


def readme_sessions() -> dict[str, list[Step]]:
    """Return what README has typed, by the section."""
    sections = re.split(r"^(.+)\n-{4,}\n", README.read_text(), flags=re.MULTILINE)[1:]
    sessions: dict[str, list[Step]] = {}
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        for indented in re.findall(r"::\n\n((?: {4}.*\n|\n)+)", text):
            block = re.sub(r"^ {4}", "", indented.strip("\n"), flags=re.MULTILINE)
            if block.lstrip().startswith(("$ ", "# ")):
                sessions.setdefault(title, []).extend(steps(block.lstrip()))
    return sessions


def page_sessions() -> dict[str, list[Step]]:
    """Return what the manual page has typed, by the sentence or heading before it."""
    text = re.search(r"^\.Sh EXAMPLES\n(.*?)^\.Sh", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert text is not None
    sessions = {}
    for before, block in re.findall(r"([^\n]*\n)\.Bd -literal[^\n]*\n(.*?)\.Ed", text[1], re.DOTALL):
        block = block.replace(r"\e", "\\")
        if block.startswith(("$ ", "# ")):
            sessions[before.strip()] = steps(block)
    return sessions


def fstab_lines() -> list[str]:
    """Return the lines of fstab(5) that the manual page has."""
    return re.findall(r"^\S+ /\S+ (?:fuse\.iscsifs|ext4) .* 0 0$", PAGE.read_text(), re.MULTILINE)


class Machine:
    """A shell of root's with a network, mounts and processes of its own; *home* is where it works."""

    def __init__(self, home: Path) -> None:
        self.home = home
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._shell = subprocess.Popen(
            f"timeout {TIME} unshare --net --mount --pid --fork --mount-proc --kill-child bash".split(),
            cwd=home,
            env={"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", "PYTHONPATH": str(TOP)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # In the copies of what others have mounted it would stay in use, and a file system on a loop device
        # would go on writing behind their umount.
        self.type(
            r"awk '$3 ~ /^fuse\./ || $1 ~ /^.dev.loop/ { print $2 }' /proc/mounts | xargs -r -n 1 umount -l"
        )
        self.type("ip link set lo up; mount -t tmpfs none /mnt; mkdir /mnt/iscsi /mnt/disk")

    def type(self, command: str, lines: int = 0, *, status: int = 0) -> list[str]:
        """Type *command*, and return what is printed until it ends with *status*; at least *lines*."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        print(f"{{ {command}\n}} </dev/null; echo status=$?", file=self._shell.stdin, flush=True)
        said: list[str] = []
        ended = ""
        while not ended or len(said) < lines:
            line = self._shell.stdout.readline()
            assert line, f"{command}: the shell has ended, after: {said}"
            if line.startswith("status="):
                ended = line
            else:
                said.append(line.rstrip("\n"))
        assert ended == f"status={status}\n", f"{command}: {said}"
        return said

    def serve(self, *arguments: str) -> None:
        """Have targets served at port 3260."""
        self.type(f"iscsifs-target {' '.join(arguments)} &", lines=1)

    def replace(self, path: str, text: str) -> None:
        """Have *path* be a file with *text*, for this machine alone."""
        name = self.home / path.replace("/", "_")
        name.write_text(text)
        name.chmod(0o644)
        self.type(f"mount --bind {name} {path}")

    def disk(self, mount_point: str) -> str:
        """Return the name of the one disk in *mount_point* below by-id."""
        (name,) = self.type(f"ls {mount_point}/by-id")
        return name

    def close(self) -> None:
        """End all of it."""
        with contextlib.suppress(AssertionError, BrokenPipeError):
            # Only from here is it seen whose they are.
            for line in self.type("losetup -n -l -O NAME,BACK-FILE"):
                device, _, behind = line.partition(" ")
                if str(self.home) in behind:
                    self.type(f"losetup -d {device}")
        with contextlib.suppress(BrokenPipeError):
            self._shell.communicate("exit\n")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    require_programs("unshare", "ip", "losetup", "mkfs.ext4")
    machine = Machine(tmp_path)
    try:
        yield machine
    finally:
        machine.close()


def shape(line: str, home: Path) -> str:
    """Return *line* without what differs from one time to the next."""
    for pattern, name in (
        (re.escape(str(home)), "/tmp"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"naa\.[0-9a-f]{16}", "NAA"),
        (r"\b(root root|ann ann)\b", "OWNER"),
        (r"\b[A-Z][a-z]{2} [ \d]\d \d\d:\d\d\b", "TIME"),
        (r"\b\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"/dev/loop\d+", "LOOP"),
        (r"\b(?!3260|127|0\b)\d+[KMG%]?", "N"),
        (r" +", " "),
    ):
        line = re.sub(pattern, name, line)
    return line


def test_the_first_session_goes_as_readme_shows_it(machine: Machine) -> None:
    require_programs("file")
    session = readme_sessions()["A first session"]
    assert len(session) > 10
    device = ""
    for command, output in session:
        said = machine.type(command.replace(LOOP, device), lines=len(output))
        assert [shape(line, machine.home) for line in said] == [shape(line, machine.home) for line in output]
        if output == [LOOP]:
            (device,) = said
    assert machine.type("pgrep -f 'iscsifs localhost'", status=1) == []


def test_what_is_done_while_it_is_mounted_goes_as_readme_shows_it(machine: Machine) -> None:
    require_programs("sfdisk")
    machine.serve("--size 256M disk.img")
    machine.type("mkdir mnt")
    refused = "mkdir mnt/localhost:1"
    for command, output in readme_sessions()["While it is mounted"]:
        said = machine.type(command, lines=len(output), status=1 if command == refused else 0)
        assert [shape(line, machine.home) for line in said] == [shape(line, machine.home) for line in output]
    assert machine.type("pgrep -f 'iscsifs mnt'", status=1) == []


def test_what_else_readme_has_typed_is_there() -> None:
    """The commands that take minutes, or change the machine, were tried by hand."""
    sessions = readme_sessions()
    assert set(sessions) == {"Try it", "Install it", "A first session", "While it is mounted"}
    for command, _ in sessions["Try it"] + sessions["Install it"]:
        for word in re.findall(r"contrib/\w+", command):
            assert os.access(TOP / word, os.X_OK), word


# The manual page.

_SECRET = "a secret of some length"
_HOSTS = "127.0.0.1 array.example.com\n127.0.0.1 localhost\n"
_DISK1 = "--name iqn.2001-04.com.example:disk1"


def example(start: str) -> list[Step]:
    """Return the session of the manual page below the line that begins so."""
    (found,) = [session for before, session in page_sessions().items() if before.startswith(start)]
    return found


def play(machine: Machine, session: list[Step], disk: str = "") -> None:
    """Type all of *session*, with *disk* in the place of the made-up name of one."""
    for command, _ in session:
        machine.type(command.replace("naa.1", disk))


def write_secret(machine: Machine, path: Path) -> None:
    path.touch(0o600)
    path.write_text(_SECRET)
    machine.serve("--user alice --secret-file", str(path), _DISK1, "--size 64M disk.img")
    machine.replace("/etc/hosts", _HOSTS)


def test_the_example_of_a_first_disk(machine: Machine) -> None:
    write_secret(machine, machine.home / ".secret")
    play(machine, example("See what there is"))


def test_the_example_of_a_loop_device(machine: Machine) -> None:
    machine.serve(_DISK1, "--size 64M disk.img")
    machine.replace("/etc/hosts", _HOSTS)
    session = example("As root, use it")
    machine.type(
        "mkdir first; iscsifs array.example.com first; mkfs.ext4 -q first/*/disk1/storage; umount first"
    )
    device = ""
    for command, output in session:
        said = machine.type(command.replace(LOOP, device))
        if output == [LOOP]:
            (device,) = said


def test_the_example_of_an_image_over_ipv6(machine: Machine) -> None:
    require_programs("qemu-img")
    machine.type("ip addr add 2001:db8::1/128 dev lo nodad")
    machine.serve("--bind 2001:db8::1", _DISK1, "--size 64M disk.img 2>/dev/null")
    machine.type(
        "head -c 1M /dev/urandom >raw; qemu-img convert -O qcow2 -f raw raw image.qcow2; mkdir disks"
    )
    play(machine, example("Copy an image without"))
    machine.type("while pgrep -f 'iscsifs iscsi:'; do sleep 0.1; done >/dev/null; cmp -n 1M raw disk.img")


def mounted_disk(machine: Machine) -> str:
    """Have a disk of 64 MiB with old bytes mounted below disks, and return its name below by-id."""
    machine.type("head -c 64M /dev/urandom >served; mkdir disks")
    machine.serve("served")
    machine.type("iscsifs localhost disks")
    return machine.disk("disks")


def make_images(machine: Machine) -> None:
    """Make disk.img, with holes, and the same as disk.qcow2."""
    machine.type(
        "truncate -s 64M disk.img; head -c 1M /dev/urandom | dd of=disk.img seek=9 bs=1M conv=notrunc"
    )
    machine.type("qemu-img convert -f raw -O qcow2 disk.img disk.qcow2")


@pytest.mark.parametrize("number", range(3))
def test_each_way_to_write_an_image_writes_its_holes_too(number: int, machine: Machine) -> None:
    require_programs("qemu-img")
    disk = mounted_disk(machine)
    make_images(machine)
    session = example("Copy an image onto")
    assert len(session) == 3
    play(machine, [session[number]], disk)
    machine.type(f"cmp disk.img disks/by-id/{disk}/storage")
    machine.type("iscsifs --unmount disks")
    machine.type("cmp disk.img served")


def test_images_are_taken_and_backups_kept(machine: Machine) -> None:
    require_programs("qemu-img", "rsync")
    disk = mounted_disk(machine)
    storage = f"disks/by-id/{disk}/storage"
    machine.type(f"truncate -s 32M zeros; dd if=zeros of={storage} bs=1M conv=notrunc,fsync")
    play(machine, example("Take an image"), disk)
    machine.type(f"cmp {storage} disk.img; qemu-img compare -f raw -F qcow2 disk.img disk.qcow2")
    assert (machine.home / "disk.img").stat().st_blocks * 512 < 40 * MIB
    forth, back = example("Bring a backup")
    machine.type(f"printf changed | dd of={storage} bs=1 seek=5000 conv=notrunc,fsync")
    play(machine, [forth], disk)
    machine.type(f"cmp {storage} disk.img")
    machine.type(f"printf again | dd of={storage} bs=1 seek=99999 conv=notrunc,fsync")
    play(machine, [back], disk)
    machine.type(f"cmp {storage} disk.img; ! grep -q again served")


def test_what_is_shown_is_looked_at(machine: Machine) -> None:
    machine.serve("--name iqn.2001-04.com.example:disk1 --size 64M disk.img")
    machine.type("mkdir disks; iscsifs localhost disks")
    disk = machine.disk("disks")
    machine.type(
        f"dd if=/dev/zero of=disks/by-id/{disk}/storage bs=4k count=7 conv=notrunc,fsync 2>/dev/null"
    )
    said = [machine.type(command.replace("naa.1", disk)) for command, _ in example("See how a session")]
    session, statistics, events = said
    assert "disks/localhost/disk1/session/state:LOGGED_IN" in session
    assert {"writes 7", "write_bytes 28672", "flushes 1"} <= set(statistics)
    assert '"event": "login"' in events[-1]
    machine.type("iscsifs --unmount disks")


def test_the_metrics_are_handed_to_prometheus(machine: Machine) -> None:
    machine.serve("--size 64M disk.img")
    machine.type("iscsifs localhost /mnt/iscsi; mkdir -p /mnt/prometheus/node-exporter")
    for command, _ in example("Hand the metrics"):
        machine.type(command.replace("/var/lib/prometheus", "/mnt/prometheus"))
    text = machine.type("cat /mnt/prometheus/node-exporter/*.prom")
    families = {family.name: family for family in text_string_to_metric_families("\n".join(text) + "\n")}
    page = PAGE.read_text()
    alarms = page[page.index("What is worth an alarm") :].split(".Ed")[0]
    for name in re.findall(r"iscsifs_\w+?(?=_total|_bucket| )", alarms):
        assert families[name].samples, name
    machine.type("iscsifs --unmount /mnt/iscsi")


def test_an_ordinary_user_has_a_file_system(machine: Machine) -> None:
    require_programs("fuse2fs", "setpriv", "mkfs.ext4")
    machine.serve("--size 64M disk.img")
    (machine.home / "mount.py").write_text(AS_USER)
    machine.type(f"mkdir -m 755 /mnt/user; chown {NOBODY}:{NOBODY} /mnt/user; here=$PWD; cd /mnt/user")
    as_user = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    machine.type(f"{as_user} mkdir disks files")
    machine.type(f"{sys.executable} $here/mount.py {NOBODY} localhost disks")
    (disk,) = machine.type(f"{as_user} ls disks/by-id")
    for command, _ in example("unmounted:"):
        machine.type(f"{as_user} bash -c '{command.replace('naa.1', disk)}'")
    machine.type(f"{as_user} /sbin/e2fsck -fn disks/by-id/{disk}/storage; {as_user} fusermount3 -u disks")
    machine.type(
        "while pgrep -f mount.py; do sleep 0.1; done >/dev/null; debugfs -R 'cat services' $here/disk.img | "
        "tail -n +1 | grep -v ^debugfs >/mnt/services; cd $here; cmp /etc/services /mnt/services"
    )


def test_the_lines_of_fstab_mount(machine: Machine) -> None:
    """Both: the disks by `mount -a`, and a file system on one of them, as systemd would have it done."""
    require_programs("mount.fuse3")
    disks, _, _, _, files = fstab_lines()
    machine.type(f"mkdir /mnt/etc; mount -t tmpfs none {SYSTEM_BIN}; ln -s $(which iscsifs) {SYSTEM_BIN}")
    write_secret(machine, Path(machine.home / "secret"))
    machine.type("mkdir -p /mnt/data; cp -a secret /mnt/etc/secret")
    (disk,) = disks_of(machine)
    lines = [
        disks.replace("/etc/iscsifs/secret", "/mnt/etc/secret"),
        files.replace("naa.1", disk).replace("/srv/data", "/mnt/data").replace("nofail", "noauto"),
    ]
    machine.replace("/etc/fstab", "\n".join(lines) + "\n")
    machine.type("mount -a")
    assert "fuse.iscsifs" in machine.type("findmnt -n -o FSTYPE /mnt/iscsi")
    machine.type("mkfs.ext4 -q /mnt/iscsi/*/disk1/storage; mount /mnt/data; cp /etc/services /mnt/data")
    machine.type("umount /mnt/data; umount /mnt/iscsi; while pgrep -x iscsifs; do sleep 0.1; done >/dev/null")
    machine.type("mount /mnt/iscsi; mount /mnt/data; cmp /etc/services /mnt/data/services")
    machine.type("umount /mnt/data /mnt/iscsi")


def test_the_lines_of_fstab_without_a_host_mount(machine: Machine) -> None:
    """A configuration file, and a mount that waits for a look at a host."""
    require_programs("mount.fuse3")
    _, configured, _, automatic, _ = fstab_lines()
    machine.type(f"mkdir /mnt/etc; mount -t tmpfs none {SYSTEM_BIN}; ln -s $(which iscsifs) {SYSTEM_BIN}")
    write_secret(machine, Path(machine.home / "secret"))
    (machine.home / "iscsi.conf").write_text(
        "disk1 { TargetAddress = 127.0.0.1; TargetName = iqn.2001-04.com.example:disk1;"
        f' chapIName = alice; chapSecret = "{_SECRET}" }}\n'
    )
    machine.type("cp iscsi.conf /mnt/etc; chmod 600 /mnt/etc/iscsi.conf")
    for line, shown in (configured, "by-id 127.0.0.1"), (automatic, "by-id"):
        machine.replace("/etc/fstab", line.replace("/etc/iscsi.conf", "/mnt/etc/iscsi.conf") + "\n")
        machine.type("mount -a; mount -a")
        assert sorted(machine.type("ls /mnt/iscsi")) == sorted(shown.split())
        machine.type(
            "umount /mnt/iscsi; while pgrep -x iscsifs; do sleep 0.1; done >/dev/null; umount /etc/fstab"
        )


def disks_of(machine: Machine) -> list[str]:
    """Return the names of the disks of the one target, as by-id has them."""
    machine.type("mkdir -p look; iscsifs --secret-file secret alice@localhost look")
    return machine.type("ls look/by-id; iscsifs --unmount look")


def test_discarding_frees_nothing_as_the_page_says(machine: Machine) -> None:
    """Whoever makes it work finds here what to rewrite."""
    disk = mounted_disk(machine)
    (device,) = machine.type(f"losetup --find --show --direct-io=on disks/by-id/{disk}/storage")
    before = (machine.home / "served").read_bytes()
    machine.type(f"blkdiscard {device}")
    machine.type(
        f"sync; losetup -d {device}; fusermount3 -u disks; while pgrep -x iscsifs; do sleep 0.1; done"
    )
    assert (machine.home / "served").read_bytes() == before
    assert "Nothing is discarded at the target" in PAGE.read_text()
