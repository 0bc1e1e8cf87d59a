"""iscsi.conf(5) describes what is read, and its examples are read."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from iscsifs.conffile.keywords import KEYWORDS
from iscsifs.conffile.options import DEFAULTS
from iscsifs.conffile.parser import parse
from iscsifs.errors import ConfigError
from iscsifs.iscsi.chap import MIN_SECRET_LENGTH
from iscsifs.iscsi.keys import INITIATOR_OFFER

PAGE = Path(__file__).parents[2] / "man" / "iscsi.conf.5"


def section(heading: str) -> str:
    match = re.search(rf"^\.Sh {heading}\n(.*?)(?=^\.Sh )", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def test_every_keyword_is_described_and_no_other() -> None:
    text = section("KEYWORDS")
    lines = re.findall(r"^\.(?:It )?Cm (.*)$", text, re.MULTILINE)
    named = {word for line in lines for word in re.findall(r"[A-Za-z]\w+", line)}
    keywords = {row.name for row in KEYWORDS.values()}
    assert keywords - named == set()
    values = {
        "None",
        "CHAP",
        "CRC32C",
        "Yes",
        "No",
        "On",
        "Off",
        "True",
        "False",
        "Normal",
        "Discovery",
        "iSCSI",
    }
    values |= {"auto", "chap", "none", "ef", "af11", "cs3"}
    options = {"command_timeout", "replacement_timeout", "writebehind", "trust_unidentified"}
    assert named - keywords == values | options


def test_the_numbers_are_those_of_the_code() -> None:
    text = " ".join(section("KEYWORDS").split())
    assert f"the answer ({DEFAULTS['ping_interval']:g} and {DEFAULTS['ping_timeout']:g})." in text
    assert f"Seconds for a login ({DEFAULTS['login_timeout']:g};" in text
    assert f"Of the first there are {INITIATOR_OFFER['MaxRecvDataSegmentLength']} at most." in text
    assert f"A number, {INITIATOR_OFFER['MaxOutstandingR2T']} at most." in text
    assert f"at least {MIN_SECRET_LENGTH} bytes" in text


@pytest.mark.conformance("CONF-1.5")
def test_the_examples_are_read() -> None:
    examples = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", section("EXAMPLES"), re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    found = parse("\n".join(reversed(examples)))
    assert {entry.nickname for entry in found.entries} == {"disk", "array", "secret", "slow", "boot"}
    assert [note.partition(": ")[2] for note in found.notes] == [
        "tgtChapSecret is taken as binary; iscsictl of FreeBSD takes the same as text"
    ]
    (form,) = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", section("DESCRIPTION"), re.DOTALL | re.MULTILINE)
    with pytest.raises(ConfigError, match='no keyword "keyword"'):
        parse(form)


def test_the_page_is_well_formed(require: Callable[..., None]) -> None:
    require("mandoc")
    lint = ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
