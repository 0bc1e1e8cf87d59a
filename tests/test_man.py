"""The manual pages say what the commands do: each option, no other, and every exit status."""

import argparse
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from enum import IntEnum
from pathlib import Path

import pytest

import iscsifs.cli
import iscsifs.command_line
import iscsifs.ctl.cli
import iscsifs.target.cli
from iscsifs.fs.platform.headroom import RESERVE
from iscsifs.fs.platform.tuning import Limits
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.limits import (
    ANSWER_TIMEOUT,
    ATTACH_TIMEOUT,
    END_TIMEOUT,
    LAST_LOGOUT_TIMEOUT,
    LOGIN_TIMEOUT,
    MANAGEMENT_TIMEOUT,
    MAX_ABORTS,
    MAX_ATTEMPTS,
    MAX_CONNECTIONS,
    MAX_TARGETS,
    MAX_TIME2WAIT,
    MAX_UNSYNCHRONISED,
    MAX_UNWRITTEN,
    UNIT_GRACE,
)
from iscsifs.mount_options import FUSE_OPTIONS, OPTIONS

MAN = Path(__file__).parent.parent / "man"

COMMANDS = {
    "iscsifs.8": (iscsifs.command_line.parser(), iscsifs.cli.ExitStatus),
    "iscsifs-target.8": (iscsifs.target.cli.parser(), iscsifs.target.cli.ExitStatus),
    "iscsifsctl.8": (iscsifs.ctl.cli.parser(), iscsifs.cli.ExitStatus),
}

each_command = pytest.mark.parametrize(
    ("page", "parser", "statuses"),
    [(page, *command) for page, command in COMMANDS.items()],
    ids=COMMANDS,
)


def section(page: str, heading: str, end: str = "") -> str:
    """Return the source of a section or subsection, up to the next of either, or up to *end*."""
    text = (MAN / page).read_text()
    behind = rf"^\.S[hs] {end}"
    match = re.search(rf"^\.S[hs] {heading}\n(.*?)(?={behind}|\Z)", text, re.DOTALL | re.MULTILINE)
    assert match is not None, f"{page} has no section {heading}"
    return match[1]


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


def options_in(macros: str) -> set[str]:
    """Return the options of a line such as ``Fl h , Fl Fl help``."""
    return {"-" * flags.count("Fl") + name for flags, name in re.findall(r"((?:Fl )+)([\w-]+)", macros)}


def test_the_commands_have_the_same_names_for_the_same() -> None:
    first, second = (
        {option: set(action.option_strings) for option, action in options_of(parser).items()}
        for parser, _ in (COMMANDS["iscsifs.8"], COMMANDS["iscsifs-target.8"])
    )
    same = first.keys() & second.keys()
    assert {"--port", "--user", "--secret-file", "--target-user", "--read-only", "-V"} <= same
    assert {option: first[option] for option in same} == {option: second[option] for option in same}


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
        (first, *others) = options_in(item)
        assert all(options[first] is options[other] for other in others), item
        takes_value = options[first].nargs != 0
        assert takes_value == bool(re.search(r" (Ar|Cm) ", item)), item
        if choices := options[first].choices:
            assert re.sub(r".* Cm ", "", item).split(" | ") == list(choices)


def commands_of_control() -> dict[str, argparse.ArgumentParser]:
    parser = iscsifs.ctl.cli.parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def test_every_command_of_control_is_described_with_its_options_and_no_other() -> None:
    items = re.findall(r"^\.It Cm (\w+)(.*)$", section("iscsifsctl.8", "COMMANDS", "FILES"), re.MULTILINE)
    commands = commands_of_control()
    assert sorted(name for name, _ in items) == sorted(commands)
    for name, rest in items:
        options = options_of(commands[name])
        described = {options[option].dest for option in options_in(rest)}
        assert described == {action.dest for action in options.values()} - {"help", "mount"}, name
        for option in options_in(rest):
            takes_value = options[option].nargs != 0
            assert takes_value == bool(re.search(rf"Fl {option.lstrip('-')} Ar", rest)), (name, option)
        arguments = [action for action in commands[name]._actions if not action.option_strings]
        behind = re.sub(r"(Fl )+\w+ Ar \w+", "", rest)
        assert bool(arguments) == ("Ar " in behind), name


def test_the_long_options_of_its_commands_are_told() -> None:
    text = section("iscsifsctl.8", "COMMANDS", "FILES")
    for parser in commands_of_control().values():
        for option in options_of(parser).keys() - {"-h", "--help", "-m", "--mount"}:
            assert re.search(rf"{'Fl ' * (1 + option.startswith('--'))}{option.lstrip('-')}\b", text), option


def test_what_top_sorts_by_is_described() -> None:
    text = " ".join(section("iscsifsctl.8", "Looking").split())
    *others, last = iscsifs.ctl.top.ORDERS
    assert f".Cm {' , '.join(others)} or .Cm {last} ." in text


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
    own = {f"{name}=" if option.read else name for name, option in OPTIONS.items()}
    assert described - {"ro", "user"} == FUSE_OPTIONS | own


@pytest.mark.parametrize(
    ("options", "defaults"),
    [
        ({"login_timeout"}, "{login_timeout:g}"),
        ({"ping_interval", "ping_timeout"}, "{ping_interval:g} and {ping_timeout:g};"),
        ({"command_timeout"}, "{command_timeout:g}"),
        ({"replacement_timeout"}, "{replacement_timeout:g}"),
        ({"max_background"}, "{max_background} by default"),
        ({"readahead"}, "{read_ahead} by default"),
    ],
)
def test_the_defaults_are_those_that_are_used(options: set[str], defaults: str) -> None:
    """And what happens at the end of each time is told."""
    items = section("iscsifs.8", "Mount options").split("\n.It ")
    (item,) = [item for item in items if options == {*re.findall(r"Cm ([a-z_]+)= Ns", item)}]
    used = asdict(InitiatorOptions("iqn.2001-04.com.example:host")) | asdict(Limits())
    told = re.search(r"^\.Pq (.*)$", item, re.MULTILINE)
    assert told is not None
    assert told[1].removesuffix(" .").startswith(defaults.format(**used))
    if any(option.endswith("_timeout") for option in options):
        assert "At its end" in item or "At the end" in item


_WORDS = {2: "two", 3: "three", 5: "five"}


@pytest.mark.parametrize(
    "sentence",
    [
        f"no more than the first {MAX_TARGETS} targets",
        f"once {ATTACH_TIMEOUT:g} seconds and one .Cm login_timeout have gone by",
        f"asked for its targets has {ANSWER_TIMEOUT:g} seconds",
        f"not yet on stable storage has {END_TIMEOUT:g} seconds",
        f"have the same {END_TIMEOUT:g} seconds",
        f"silent has {_WORDS[int(LAST_LOGOUT_TIMEOUT)]} seconds to answer the logout",
        f"sent again, up to {_WORDS[1 + MAX_ABORTS]} times in all",
        f"has not succeeded after {MANAGEMENT_TIMEOUT:g} seconds the logical unit is reset",
        f"and after {MANAGEMENT_TIMEOUT:g} more the session is made anew",
        f"with which {_WORDS[MAX_ATTEMPTS]} sessions were lost",
        f"missing for {UNIT_GRACE:g} seconds",
        f"(DefaultTime2Wait, Time2Wait), up to {MAX_TIME2WAIT:g} seconds",
        f"at most {MAX_UNWRITTEN >> 20} MiB of data wait to be written",
        f"and {MAX_UNSYNCHRONISED >> 20} MiB that were written are kept",
        f"a reserve of {RESERVE >> 20} MiB of addresses",
    ],
)
def test_the_times_and_sizes_are_those_that_are_used(sentence: str) -> None:
    assert " ".join((MAN / "iscsifs.8").read_text().split()).count(sentence) == 1


def test_so_are_those_of_the_target() -> None:
    text = " ".join((MAN / "iscsifs-target.8").read_text().split())
    assert f"At most {MAX_CONNECTIONS} connections are served at once" in text
    assert f"a login may take {LOGIN_TIMEOUT:g} seconds" in text


def test_the_synopsis_tells_how_to_unmount() -> None:
    assert ".Nm\n.Fl Fl unmount\n.Ar mountpoint ..." in section("iscsifs.8", "SYNOPSIS")


def test_examples_end_with_unmounting() -> None:
    for example in section("iscsifs.8", "EXAMPLES").split(".Bd")[1:]:
        assert re.search(r"(fusermount3 -u|# umount|iscsifs --unmount) \S+\n\.Ed", example)
