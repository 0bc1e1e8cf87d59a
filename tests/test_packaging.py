"""What is handed out: the archives for installation, and what they bring beside the commands."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import iscsifs
from support.machine import absent
from support.mounting import run

TOP = Path(__file__).resolve().parents[1]
COMPLETIONS = TOP / "contrib" / "completions"
COMMANDS = ["iscsifs", "iscsifs-target", "iscsifsctl"]
DATA = {
    *(f"share/man/man8/{command}.8" for command in COMMANDS),
    "share/man/man5/iscsi.conf.5",
    *(f"share/bash-completion/completions/{command}" for command in COMMANDS),
    *(f"share/zsh/site-functions/_{command}" for command in COMMANDS),
    *(f"share/fish/vendor_completions.d/{command}.fish" for command in COMMANDS),
    "lib/systemd/system/iscsifs@.service",
}


def sources() -> set[str]:
    """Return the files of this clone, or of an archive that was unpacked, without what tools left there."""
    if (TOP / ".git").exists():
        return set(run("git", "-c", f"safe.directory={TOP}", "-C", TOP, "ls-files").splitlines())
    left = re.compile(
        r"(^|/)(\.venv|\.\w+_cache|\.hypothesis|__pycache__|build|dist|[^/]*\.egg-info|PKG-INFO)(/|$)"
    )
    names = {str(path.relative_to(TOP)) for path in TOP.rglob("*") if path.is_file()}
    return {name for name in names if not left.search(name)}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source archive and the wheel made of it, built from a copy: setuptools leaves its traces."""
    work = tmp_path_factory.mktemp("archives")
    for name in sources():
        copy = work / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "-o", work / "dist", work / "source")
    found = list((work / "dist").iterdir())
    return {"".join(path.suffixes[-1:]): path for path in found}


def test_the_wheel_has_pages_completions_and_the_unit(archives: dict[str, Path]) -> None:
    with zipfile.ZipFile(archives[".whl"]) as wheel:
        names = wheel.namelist()
    data = {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    assert data == DATA
    rest = {name.partition("/")[0] for name in names}
    assert rest == {"iscsifs", *(name for name in rest if name.startswith("iscsifs-"))}


def test_the_source_archive_has_everything(archives: dict[str, Path]) -> None:
    with tarfile.open(archives[".gz"]) as archive:
        members = {member.name.partition("/")[2]: member for member in archive if member.isfile()}
    assert sources() - set(members) == set()
    assert members["contrib/test"].mode & 0o111
    assert not [name for name in members if "__pycache__" in name or name.endswith(".pyc")]


def test_the_descriptions_can_be_shown(archives: dict[str, Path]) -> None:
    """By an index of packages, to whom relative links lead nowhere."""
    run(sys.executable, "-m", "twine", "check", "--strict", *archives.values())
    readme = (TOP / "README.rst").read_text()
    for link in re.findall(r"^\.\. (?:image|figure):: (.*)$", readme, re.MULTILINE):
        assert link.startswith("https://")


def test_an_installed_wheel_runs_and_man_finds_its_page(
    archives: dict[str, Path], tmp_path: Path, require: Callable[..., None]
) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python"]
    run(*pip, "install", "--no-deps", "--no-index", archives[".whl"])
    # Its requirements are those that the tests run with.
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))
    for command in COMMANDS:
        assert run(venv / "bin" / command, "-V") == f"{command} {iscsifs.__version__}\n"
    where = run(venv / "bin/python", "-I", "-c", "import iscsifs; print(iscsifs.__file__)")
    assert where.startswith(str(venv))
    require("man")
    page = subprocess.run(
        ["man", "-w", "iscsifs"],
        env=os.environ | {"PATH": f"{venv}/bin:/usr/bin:/bin", "MANPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert page.stdout == f"{venv}/share/man/man8/iscsifs.8\n"


# Completions.


def test_the_completions_are_those_of_the_parsers(tmp_path: Path) -> None:
    run(sys.executable, COMPLETIONS / "generate", tmp_path)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 3 * len(COMMANDS)
    for path, text in made.items():
        here = COMPLETIONS / path
        assert here.read_text() == text, (
            f"{here} is of yesterday; run .venv/bin/python {COMPLETIONS}/generate"
        )


WORDS = [
    ("iscsifs --dig", ["--digest"]),
    ("iscsifs --digest ", ["none", "header", "data", "all"]),
    ("iscsifs --secret-file sec", ["secret"]),
    ("iscsifs host mou", ["mountpoint/"]),
    ("iscsifs host other mou", ["mountpoint/"]),
    ("iscsifsctl resc", ["rescan"]),
    ("iscsifsctl top --sort d", ["dirty", "depth"]),
    ("iscsifsctl unmount mou", ["mountpoint/"]),
    ("iscsifsctl save sec", ["secret"]),
    ("iscsifsctl trace sto", ["stop"]),
]


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    """A directory with something to complete."""
    (tmp_path / "mountpoint").mkdir()
    (tmp_path / "secret").touch()
    return tmp_path


@pytest.mark.parametrize(("words", "completed"), WORDS)
def test_bash_completes(words: str, completed: list[str], somewhere: Path) -> None:
    script = f"""
        . {COMPLETIONS}/bash/{words.split()[0]}; cd {somewhere}
        COMP_WORDS=({words}{'""' if words.endswith(" ") else ""})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_{words.split()[0]} 2>/dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert run("bash", "-c", script).split() == [word.rstrip("/") for word in completed]


@pytest.mark.parametrize(("words", "completed"), WORDS)
def test_fish_completes(
    words: str, completed: list[str], somewhere: Path, require: Callable[..., None]
) -> None:
    require("fish")
    command = words.split()[0]
    script = f"source {COMPLETIONS}/fish/{command}.fish; cd {somewhere}; complete -C '{words}'"
    said = run("env", f"HOME={somewhere}", "fish", "--no-config", "-c", script)
    assert {line.partition("\t")[0] for line in said.splitlines()} == set(completed)


@pytest.mark.parametrize(
    ("words", "completed"), [(words, found) for words, found in WORDS if len(found) == 1]
)
def test_zsh_completes(
    words: str, completed: list[str], somewhere: Path, require: Callable[..., None]
) -> None:
    """What is typed at a terminal, and the command line that comes of it."""
    require("zsh")
    script = f"""
        zmodload zsh/zpty; zpty shell zsh -f -i
        zpty -w shell 'cd {somewhere}; PS1=; fpath=({COMPLETIONS}/zsh $fpath); autoload -U compinit'
        zpty -w shell 'compinit -u -D; show() {{ print -r -- "line=$BUFFER=" >>said }}; zle -N show'
        zpty -w shell 'bindkey "^X" show; : > ready'
        until [[ -e {somewhere}/ready ]] {{ sleep 0.05 }}
        zpty -w -n shell $'{words}\\t\\x18'
        until [[ -s {somewhere}/said ]] {{ sleep 0.05 }}
        zpty -d shell
    """
    begun = time.monotonic()
    done = subprocess.run(
        ["zsh", "-f", "-c", script], timeout=20, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), time.monotonic() - begun
    (line,) = re.findall("=(.*)=", (somewhere / "said").read_text())
    (word,) = completed
    assert line.split()[-1] == word


# The unit of systemd.


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path, require: Callable[..., None]) -> None:
    require("systemd-analyze")
    unit = tmp_path / "iscsifs@.service"
    text = (TOP / "contrib/systemd/iscsifs@.service").read_text()
    assert "\nExecStart=/usr/local/bin/iscsifs -f " in text
    unit.write_text(text.replace("/usr/local/bin/iscsifs", "/bin/true"))  # which has to be there
    if not Path("/lib/systemd/system/remote-fs.target").exists():
        absent("systemd is not installed")
    run(
        "systemd-analyze",
        "verify",
        "--man=no",
        "--recursive-errors=no",
        tmp_path / "iscsifs@mnt-iscsi.service",
    )
