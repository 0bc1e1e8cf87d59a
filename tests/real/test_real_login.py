"""Authentication and digests at real targets, from the command line."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from support.mounting import MountHosts, iscsifs
from support.targets import Chap, Daemon, Istgt, Serve, Target, Tgt, Unit

NAME = "iqn.2026-01.example:disk"
ALICE = Chap("alice", "secret of alice")
BOTH = Chap("alice", "secret of alice", "the-target", "secret of target")

pytestmark = [pytest.mark.real, pytest.mark.mount]

SecretFile = Callable[[str], Path]


class Tap:
    """A relay that keeps the first of what the target says."""

    def __init__(self) -> None:
        self.answers = b""
        self._stack = ExitStack()

    def __call__(self, port: int) -> str:
        """Relay connections to *port* of 127.0.0.1; return the portal to connect to instead."""
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        thread = threading.Thread(target=self._accept, args=(listener, port))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(listener.shutdown, socket.SHUT_RDWR)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def _accept(self, listener: socket.socket, port: int) -> None:
        with ExitStack() as stack, suppress(OSError):
            while True:
                near = stack.enter_context(listener.accept()[0])
                far = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for source, sink in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pump, args=(source, sink, source is far))
                    thread.start()
                    stack.callback(thread.join)
                    stack.callback(_shut_down, source)

    def _pump(self, source: socket.socket, sink: socket.socket, from_target: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if from_target and len(self.answers) < 1 << 16:
                    self.answers += data
                sink.sendall(data)
        _shut_down(sink)

    def close(self) -> None:
        """End the relay."""
        self._stack.close()


def _shut_down(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tap() -> Iterator[Tap]:
    """A relay for the length of the test."""
    tap = Tap()
    yield tap
    tap.close()


@pytest.fixture
def secret_file(tmp_path: Path) -> SecretFile:
    """Write a secret to a file as the manual says."""

    def write(secret: str) -> Path:
        path = tmp_path / f"secret{len(list(tmp_path.glob('secret*')))}"
        path.touch(mode=0o600)
        path.write_text(secret + "\n")
        return path

    return write


def alice(secret_file: SecretFile) -> list[object]:
    return ["-u", ALICE.user, "--secret-file", secret_file(ALICE.secret)]


def target_secret(secret_file: SecretFile, secret: str = BOTH.target_secret) -> list[object]:
    return ["--target-user", BOTH.target_user, "--target-secret-file", secret_file(secret)]


def test_chap(
    any_target: type[Daemon],
    serve: Serve,
    mount_hosts: MountHosts,
    secret_file: SecretFile,
    image: Path,
    tmp_path: Path,
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)], ALICE)))
    url = f"iscsi://alice@{daemon.portal}/{NAME}"
    mounted = mount_hosts("--secret-file", secret_file(ALICE.secret), url)
    mounted.storage().write_bytes(b"written by alice")
    mounted.unmount()
    assert image.read_bytes()[:16] == b"written by alice"
    # The secret is on no command line, and the target let nobody else in.
    assert ALICE.secret not in " ".join(map(str, mounted.said.args))
    refused(iscsifs(f"iscsi://{daemon.portal}/{NAME}", empty(tmp_path)))


def test_mutual_chap(
    any_target: type[Daemon],
    serve: Serve,
    mount_hosts: MountHosts,
    secret_file: SecretFile,
    image: Path,
    tmp_path: Path,
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)], BOTH)))
    url = f"iscsi://{daemon.portal}/{NAME}"
    mounted = mount_hosts(*alice(secret_file), *target_secret(secret_file), url)
    assert mounted.storage().stat().st_size == image.stat().st_size
    wrong = target_secret(secret_file, "another secret!!")
    done = iscsifs(*alice(secret_file), *wrong, url, empty(tmp_path))
    assert "CHAP_R" in refused(done)


def test_a_wrong_secret(
    any_target: type[Daemon], serve: Serve, secret_file: SecretFile, image: Path, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)], ALICE)))
    url = f"iscsi://alice@{daemon.portal}/{NAME}"
    done = iscsifs("--secret-file", secret_file("not this secret"), url, empty(tmp_path))
    complaint = refused(done)
    assert NAME in complaint
    assert "0201" in complaint
    done = iscsifs("--secret-file", secret_file(ALICE.secret), url.replace("alice", "bob"), empty(tmp_path))
    refused(done)


def test_a_target_that_does_not_prove_itself(
    any_target: type[Daemon], serve: Serve, secret_file: SecretFile, image: Path, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)], ALICE)))
    url = f"iscsi://{daemon.portal}/{NAME}"
    refused(iscsifs(*alice(secret_file), *target_secret(secret_file), url, empty(tmp_path)))


def test_a_target_that_offers_no_authentication(
    any_target: type[Daemon], serve: Serve, secret_file: SecretFile, image: Path, tmp_path: Path
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)])))
    url = f"iscsi://{daemon.portal}/{NAME}"
    complaint = refused(iscsifs(*alice(secret_file), url, empty(tmp_path)))
    assert "AuthMethod" in complaint or "authentication" in complaint


@pytest.mark.parametrize("kind", [Tgt, Istgt])
@pytest.mark.parametrize("chap", [ALICE, BOTH], ids=["one-way", "mutual"])
def test_chap_for_discovery_as_well(
    kind: type[Daemon],
    chap: Chap,
    serve: Serve,
    mount_hosts: MountHosts,
    secret_file: SecretFile,
    image: Path,
    tmp_path: Path,
) -> None:
    daemon = serve(kind(tmp_path, Target(NAME, [Unit(image)], chap), discovery=chap))
    both = [*alice(secret_file), *(target_secret(secret_file) if chap is BOTH else [])]
    listed = iscsifs("-D", *both, daemon.portal)
    assert (listed.returncode, listed.stdout) == (0, f"127.0.0.1: {daemon.portal},1 {NAME}\n")
    assert mount_hosts(*both, daemon.portal).storage().exists()
    done = iscsifs("-D", daemon.portal)
    assert done.stdout == ""
    refused(done)


@pytest.mark.parametrize("digest", ["none", "header", "data", "all"])
def test_digests(
    any_target: type[Daemon],
    digest: str,
    serve: Serve,
    tap: Tap,
    mount_hosts: MountHosts,
    image: Path,
    tmp_path: Path,
) -> None:
    daemon = serve(any_target(tmp_path, Target(NAME, [Unit(image)], parameters=digests_of(any_target))))
    mounted = mount_hosts("--digest", digest, f"iscsi://{tap(daemon.port)}/{NAME}")
    content = bytes(range(256)) * 40
    mounted.storage().write_bytes(content)
    with open(mounted.storage(), "rb") as file:
        assert file.read(len(content) + 5) == content + bytes(5)
    mounted.unmount()
    assert image.read_bytes()[: len(content)] == content
    answers = dict(re.findall(rb"(HeaderDigest|DataDigest)=(\w+)", tap.answers))
    assert answers == {
        b"HeaderDigest": b"CRC32C" if digest in ("header", "all") else b"None",
        b"DataDigest": b"CRC32C" if digest in ("data", "all") else b"None",
    }


def digests_of(kind: type[Daemon]) -> dict[str, str]:
    """Parameters with which a target takes what it is offered."""
    if kind is Istgt:
        return {"UseDigest": "Auto"}
    return {"HeaderDigest": "None,CRC32C", "DataDigest": "None,CRC32C"} if kind is Tgt else {}


def empty(directory: Path) -> Path:
    """Return an empty directory to mount on."""
    path = directory / "empty"
    path.mkdir(exist_ok=True)
    return path


def refused(done: CompletedProcess[str]) -> str:
    """Check that the login failed and that one line says so, and return that."""
    assert done.returncode == 4, done
    (complaint,) = done.stderr.splitlines()
    assert complaint.startswith("iscsifs: ")
    for secret in (ALICE.secret, BOTH.target_secret):
        assert secret not in complaint
    return complaint
