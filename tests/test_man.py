"""The manual pages say what the commands do: each option, no other, and every exit status."""

import argparse
import re
import subprocess
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import pytest

import iscsifs.cli
import iscsifs.target.cli
from iscsifs.config import FUSE_OPTIONS, MountOptions

MAN = Path(__file__).parent.parent / "man"

COMMANDS = {
    "iscsifs.8": (iscsifs.cli.parser(), iscsifs.cli.ExitStatus),
    "iscsifs-target.8": (iscsifs.target.cli.parser(), iscsifs.target.cli.ExitStatus),
}

each_command = pytest.mark.parametrize(
    ("page", "parser", "statuses"),
    [(page, *command) for page, command in COMMANDS.items()],
    ids=COMMANDS,
)


def section(page: str, heading: str) -> str:
    """Return the source of a section or subsection."""
    text = (MAN / page).read_text()
    match = re.search(rf"^\.S[hs] {heading}\n(.*?)(?=^\.S[hs] |\Z)", text, re.DOTALL | re.MULTILINE)
    assert match is not None, f"{page} has no section {heading}"
    return match[1]


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


def options_in(macros: str) -> set[str]:
    """Return the options of a line such as ``Fl h , Fl Fl help``."""
    return {"-" * flags.count("Fl") + name for flags, name in re.findall(r"((?:Fl )+)([\w-]+)", macros)}


@each_command
def test_every_option_is_described_and_no_other(
    page: str, parser: argparse.ArgumentParser, statuses: type[IntEnum]
) -> None:
    items = re.findall(r"^\.It (Fl .*)$", section(page, "DESCRIPTION"), re.MULTILINE)
    described = set().union(*map(options_in, items))
    options = options_of(parser)
    assert described - set(options) == set()
    assert set(options) - described <= {"-h", "--help"}
    for item in items:
        (first, *_) = options_in(item)
        takes_value = options[first].nargs != 0
        assert takes_value == bool(re.search(r" (Ar|Cm) ", item)), item
        if choices := options[first].choices:
            assert re.sub(r".* Cm ", "", item).split(" | ") == list(choices)


@each_command
def test_every_exit_status_is_described_and_no_other(
    page: str, parser: argparse.ArgumentParser, statuses: type[IntEnum]
) -> None:
    described = re.findall(r"^\.It (\d+)", section(page, "EXIT STATUS"), re.MULTILINE)
    assert sorted(map(int, described)) == sorted(statuses)


@each_command
def test_the_page_is_well_formed(
    page: str, parser: argparse.ArgumentParser, statuses: type[IntEnum], require: Callable[..., None]
) -> None:
    require("mandoc")
    lint = ["mandoc", "-T", "lint", "-W", "warning", str(MAN / page)]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_mount_option_is_described_and_no_other() -> None:
    lines = [line for line in section("iscsifs.8", "Mount options").splitlines() if "Cm " in line]
    described = {
        word
        for line in lines
        for word in re.findall(r"[a-z_]+=?", re.sub(r"^\.(It )?|\b(Cm|Ns|Ar \w+|Xo)\b|0", "", line))
    }
    assert described >= FUSE_OPTIONS
    for option in described - FUSE_OPTIONS:
        MountOptions.parse(
            [f"{option}{1 if option == 'writebehind=' else 12}" if option.endswith("=") else option]
        )


def test_the_synopsis_tells_how_to_unmount() -> None:
    assert ".Nm fusermount3\n.Fl u\n.Ar mountpoint" in section("iscsifs.8", "SYNOPSIS")


def test_examples_end_with_unmounting() -> None:
    for example in section("iscsifs.8", "EXAMPLES").split(".Bd")[1:]:
        assert re.search(r"(fusermount3 -u|# umount) \S+\n\.Ed", example)
