"""contrib/lib/install.sh and contrib/install: missing commands are named, and root leaves no traces."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.machine import require_programs

TOP = Path(__file__).resolve().parents[1]
NOBODY = 65534

# What install.sh itself calls, and what stands for the packages that it always looks for.
_TOOLS = (
    *("bash", "dirname", "stat", "id", "paste", "env", "cat", "setpriv", "getent", "touch"),
    *("python3", "gcc", "pkg-config", "fusermount3"),
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory that every user may look into."""
    path = Path(tempfile.mkdtemp(prefix="iscsifs."))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def tools(directory: Path) -> Path:
    """A directory to be the only one in PATH, with no apt-get in it."""
    require_programs(*_TOOLS)
    path = directory / "bin"
    path.mkdir()
    for tool in _TOOLS:
        (path / tool).symlink_to(str(shutil.which(tool)))
    return path


def bash(tools: Path, script: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run *script* behind install.sh with no other tools than *tools*."""
    become = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return subprocess.run(
        [*become, tools / "bash", "-euo", "pipefail", "-c", f". {TOP}/contrib/lib/install.sh; {script}"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def script(path: Path, text: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


def test_what_is_there_is_not_missed_whoever_installed_it(tools: Path) -> None:
    """No package manager knows these."""
    script(tools / "iscsi-test-cu", "")
    done = bash(tools, "need_packages libiscsi-bin && echo all there")
    assert (done.stdout, done.stderr) == ("all there\n", "")


def test_without_apt_the_commands_are_named_and_debians_packages(tools: Path) -> None:
    done = bash(tools, "need_packages libiscsi-bin no-such-tool")
    assert done.returncode == 1
    assert done.stderr == (
        "bash: not found: iscsi-test-cu (libiscsi-bin); no-such-tool (no-such-tool); "
        "please install them: in brackets are the names of Debian's packages\n"
    )


@pytest.mark.usefixtures("require_root")
def test_without_root_it_says_what_root_can_do(tools: Path) -> None:
    script(tools / "apt-get", "echo called >&2; exit 1")
    (tools / "gcc").unlink()
    done = bash(tools, "need_packages no-such-tool", user=NOBODY)
    assert done.returncode == 1
    assert done.stderr == (
        "bash: not found: no-such-tool (no-such-tool); gcc (gcc); please have root run: "
        "apt-get install no-such-tool gcc\n"
    )


@pytest.mark.usefixtures("require_root")
def test_root_has_them_installed_and_looks_again(tools: Path) -> None:
    script(
        tools / "apt-get", f'[ "$2" = update ] || {{ echo "$*" >>{tools}/log; {tools}/bash {tools}/make; }}'
    )
    (tools / "make").write_text(f"echo '#!{tools}/bash' >{tools}/a-tool; chmod +x {tools}/a-tool")
    (tools / "chmod").symlink_to(str(shutil.which("chmod")))
    done = bash(tools, "need_packages a-tool && echo all there")
    assert (done.stdout, done.stderr) == ("installing a-tool\nall there\n", "")
    assert (tools / "log").read_text() == "-q -y --no-install-recommends install a-tool\n"
    done = bash(tools, "need_packages other-tool")
    assert done.stderr == (
        "bash: other-tool is installed, but there is no other-tool; is something else in its place?\n"
    )


@pytest.mark.usefixtures("require_root")
def test_root_leaves_nothing_of_its_own_in_the_clone_of_another(directory: Path) -> None:
    clone = directory / "clone"
    for name in "contrib", "iscsifs":
        shutil.copytree(TOP / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", clone], check=True)
    work = """. contrib/lib/install.sh
        as_owner mkdir .venv; as_owner tee .venv/installed <<<here >/dev/null
        python3 -c 'import iscsifs.limits'; [ "$(as_owner id -u)" = 65534 ]"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run(["bash", "-euc", work], cwd=clone, env=environment, check=True, timeout=60)
    assert (clone / ".venv" / "installed").read_text() == "here\n"
    assert [path for path in clone.rglob("*") if path.lstat().st_uid != NOBODY] == []


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("relative", "install: give a whole path, as in: contrib/install [--remove] /opt/iscsifs\n"),
        ("/etc", "install: /etc is something else, and stays as it is\n"),
    ],
)
@pytest.mark.usefixtures("require_root")
def test_install_touches_nothing_that_is_not_its_own(argument: str, said: str) -> None:
    for remove in [], ["--remove"]:
        command = [str(TOP / "contrib/install"), *remove, argument]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
