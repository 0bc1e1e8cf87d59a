"""ARCHITECTURE.rst and its picture say what the code is: every module, every arrow, every name."""

import ast
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import trio
from pyfuse3 import RequestContext

from iscsifs.fs.nodes import TreeOptions
from iscsifs.fs.operations import Operations
from iscsifs.fs.tree import TargetDescription, Tree, UnitDescription
from iscsifs.iscsi.states import CONNECTION_TRANSITIONS, SESSION_TRANSITIONS, TARGET_CONNECTION_TRANSITIONS
from iscsifs.target.disk import Disk
from support.memory_san import San
from test_layers import MAY_IMPORT, MODULES, ROOT

TOP = Path(__file__).parents[1]
PAGE = TOP / "ARCHITECTURE.rst"
PICTURE = TOP / "docs" / "rooms.svg"
GROUND = {"errors", "limits"}  # below nearly all rooms: the picture leaves these arrows out, and says so
MIB = 1 << 20
SVG = "{http://www.w3.org/2000/svg}"


def section(title: str) -> str:
    """Return what is under the heading *title* of the page."""
    _, found, rest = PAGE.read_text().partition(f"\n{title}\n{'-' * len(title)}\n")
    assert found, title
    return re.split(r"^.+\n-{4,}\n", rest, maxsplit=1, flags=re.MULTILINE)[0]


def literals(text: str) -> set[str]:
    """Return what *text* has between double backquotes."""
    return set(re.findall(r"``([^`]+)``", text))


def arrows_of_the_page() -> dict[str, set[str]]:
    """Return the table of the rooms and what they may import."""
    _, _, table, _ = re.split(r"^=+  =+$", section("Who may import whom"), flags=re.MULTILINE)
    rows = (re.split(r" {2,}", row, maxsplit=1) for row in table.strip().splitlines())
    return {room.strip("`"): literals(imported) for room, imported in rows}


def modules_of_the_page() -> list[str]:
    """Return the modules that have a line of their own."""
    return re.findall(r"^``([\w/]+\.py)`` ", section("The modules"), flags=re.MULTILINE)


def names_of_the_page() -> list[tuple[str, str]]:
    """Return (module, name of a class, function or constant in it) for each that the page gives."""
    found = re.findall(r"``([\w/]+\.py):([\w.]+)``", PAGE.read_text())
    return sorted(set(found))


def names_in(module: Path) -> set[str]:
    """Return what *module* defines: its names, and `Class.name` for the methods and attributes of classes."""
    found: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        found |= defined_by(node)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                found |= {f"{node.name}.{name}" for name in defined_by(member)}
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                    found.add(f"{node.name}.{inner.attr}")
    return found


def defined_by(node: ast.stmt) -> set[str]:
    """Return the names that one statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return {target.id for target in targets if isinstance(target, ast.Name)}


def picture() -> ElementTree.Element:
    return ElementTree.parse(PICTURE).getroot()


def rooms_of_the_picture() -> set[str]:
    return {
        identity
        for box in picture().iter(f"{SVG}rect")
        if (identity := box.get("id")) is not None and "room" in box.get("class", "").split()
    }


def test_every_module_has_one_line_and_no_other_has() -> None:
    modules = [str(path.relative_to(ROOT)) for path in MODULES if path.name != "__init__.py"]
    assert sorted(modules_of_the_page()) == sorted(modules)


def test_the_arrows_of_the_page_are_those_of_the_layers() -> None:
    assert arrows_of_the_page() == MAY_IMPORT


def test_the_arrows_of_the_picture_are_those_of_the_layers() -> None:
    rooms = rooms_of_the_picture()
    assert {room for room in MAY_IMPORT if (ROOT / room).is_dir()} <= rooms <= set(MAY_IMPORT)
    drawn = [path.get("id") for path in picture().iter(f"{SVG}path") if path.get("id") is not None]
    wanted = [f"{room}-{other}" for room in rooms for other in MAY_IMPORT[room] & rooms - GROUND]
    assert sorted(map(str, drawn)) == sorted(wanted)


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    """No fonts, scripts or images of others; and a background of its own, so that it suits any page."""
    text = PICTURE.read_text()
    assert set(re.findall(r"https?://[^\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#head", "#callhead"}
    assert "prefers-color-scheme: dark" in text
    whole = picture()
    background = next(whole.iter(f"{SVG}rect"))
    assert [background.get(side) for side in ("width", "height")] == [whole.get("width"), whole.get("height")]


@pytest.mark.parametrize(("module", "name"), names_of_the_page())
def test_what_the_page_names_is_there(module: str, name: str) -> None:
    assert name in names_in(ROOT / module)


def test_methods_that_the_page_names_alone_are_there() -> None:
    everything = {name for module in MODULES for name in names_in(module)}
    alone = {name for name in literals(PAGE.read_text()) if re.fullmatch(r"[A-Z]\w+\.\w+", name)}
    assert alone
    assert alone - everything == set()


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("CONNECTION_TRANSITIONS", CONNECTION_TRANSITIONS),
        ("TARGET_CONNECTION_TRANSITIONS", TARGET_CONNECTION_TRANSITIONS),
        ("SESSION_TRANSITIONS", SESSION_TRANSITIONS),
    ],
)
def test_the_states_of_the_page_are_those_of_the_code(
    heading: str, table: Mapping[tuple[Enum, Enum], Enum]
) -> None:
    _, _, text = section("The states").partition(f"``iscsi/states.py:{heading}``")
    _, _, rows, _ = re.split(r"^=+ .*=$", text, maxsplit=3, flags=re.MULTILINE)
    shown = [tuple(re.split(" {2,}", row)[:3]) for row in rows.strip().splitlines()]
    assert shown == [(state.name, event.name, after.name) for (state, event), after in table.items()]


def test_files_that_the_page_names_are_there() -> None:
    paths = {name.partition(":")[0] for name in literals(PAGE.read_text()) if "/" in name or ".py" in name}
    paths.add(str(PICTURE.relative_to(TOP)))
    paths -= {"/dev/fuse", "iscsifs/"}
    assert len(paths) > 50
    missing = [path for path in paths if not (ROOT / path).exists() and not (TOP / path).exists()]
    assert missing == []


# The ways of a read, of a write and of fsync, as they are taken.


def way(title: str) -> list[tuple[str, str]]:
    """Return the functions in the tables under *title*, in their order, without what works around pyfuse3."""
    rows = re.findall(r"^``([\w/]+\.py):([\w.]+)``  ", section(title), flags=re.MULTILINE)
    assert rows
    return [(module, name) for module, name in rows if not module.startswith("fs/platform/")]


async def calls_of(work: Callable[[], Awaitable[object]]) -> list[tuple[str, str]]:
    """Return the functions of ours that are called while *work* runs; that one is resumed is no call."""
    calls: list[tuple[str, str]] = []
    seen: set[FrameType] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/") and frame not in seen:
            seen.add(frame)
            module = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
            calls.append((module, frame.f_code.co_qualname))

    sys.setprofile(profile)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return calls


def first_not_taken(way: list[tuple[str, str]], calls: list[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the first function of *way* that is not called after those before it."""
    rest = iter(calls)
    return next((step for step in way if step not in rest), None)


async def test_a_read_and_a_write_go_the_ways_of_the_page(nursery: trio.Nursery) -> None:
    san = San(nursery, Disk.in_memory(16 * MIB))
    await san.log_in()
    tree = Tree(TreeOptions(uid=0, gid=0))
    unit = UnitDescription("0", 0, "disk", "", "", "", None, None, 512, san.unit)
    tree.add_targets([TargetDescription("host", "192.0.2.1", 3260, "iqn.2001-04.com.example:disk", (unit,))])
    operations = Operations(tree)
    (file,) = tree.files()
    handle = (await operations.open(file.inode, os.O_RDWR, RequestContext())).fh

    async def write() -> None:
        await operations.write(handle, 100, bytes(4 * MIB))
        await san.unit.drain()  # so that the answers come before the fsync
        await operations.fsync(handle, True)

    reads = await calls_of(partial(operations.read, handle, 8 * MIB, 4096))
    assert first_not_taken(way("The way of a read"), reads) is None
    writes = await calls_of(write)
    assert first_not_taken(way("The way of a write"), writes) is None
