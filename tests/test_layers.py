"""Who may import whom."""

import ast
from pathlib import Path

import pytest

import iscsifs

ROOT = Path(iscsifs.__file__).parent

MAY_IMPORT = {
    "errors": set(),
    "limits": set(),
    "iscsi": {"errors", "limits"},
    "scsi": {"errors", "limits"},
    "conffile": {"errors", "initiator", "iscsi", "secret"},
    "ibft": {"errors", "iscsi", "scsi"},
    "isns": {"errors", "limits"},
    "notify": set(),
    "transport": {"errors", "limits", "iscsi"},
    "initiator": {"errors", "limits", "transport", "iscsi", "scsi"},
    "units": {"errors", "limits", "scsi"},
    "discovery": {"errors", "limits", "iscsi", "isns", "transport"},
    "service": {
        *("config", "discovery", "errors", "fs", "initiator", "iscsi", "limits", "transport", "units"),
    },
    "monitor": {"errors", "limits"},
    "target": {"errors", "limits", "iscsi", "scsi", "secret", "terminal"},
    "fs": {"errors", "limits"},
    "ctl": {"conffile", "errors", "exit_status", "fs", "limits", "terminal", "unmount"},
    "exit_status": set(),
    "logs": {"limits", "terminal"},
    "secret": {"errors"},
    "terminal": {"errors"},
    "unmount": {"errors", "exit_status", "fs", "terminal"},
    "mount_options": {"errors", "fs"},
    "config": {"errors", "initiator", "iscsi", "mount_options", "secret"},
}
"""What the rooms may import of this package; secret and terminal are for target.cli only.

Units and sessions do not know each other: service, which knows both, hands the paths over."""

SANS_IO = {"errors", "limits", "iscsi", "isns", "scsi"}

NOT_SANS_IO = {
    *("asyncio", "trio", "pyfuse3", "socket", "select", "selectors", "ssl", "subprocess", "threading"),
    *("time", "datetime", "random", "secrets", "os", "pathlib", "io", "tempfile", "signal"),
}
"""What a protocol has no business with: sockets, files, clocks and randomness are its callers'."""

OUTSIDE = {
    "errors": set[str](),
    "limits": set[str](),
    "iscsi": {"crc32c"},
    "scsi": set[str](),
    "conffile": set[str](),
    "ibft": set[str](),
    "monitor": set[str](),
    "isns": set[str](),
    "notify": set[str](),
    "transport": {"trio"},
    "initiator": {"trio"},
    "units": {"trio"},
    "discovery": {"trio"},
    "service": {"trio"},
    "target": {"trio", "crc32c"},
    "fs": {"trio", "pyfuse3"},
    "cli": {"trio"},
}
"""Packages from elsewhere."""

KNOWN_OUTSIDE = {"crc32c", "trio", "pyfuse3"}

MODULES = sorted(ROOT.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
    """Return the dotted names that *module* imports, those of "from" imports with what is imported."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(module: Path) -> set[str]:
    names = [name.split(".") for name in imports(module)]
    rooms = {parts[1] for parts in names if parts[0] == "iscsifs" and len(parts) > 1}
    return {room for room in rooms if (ROOT / room).is_dir() or (ROOT / f"{room}.py").exists()}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_lead_downwards(module: Path) -> None:
    room = room_of(module)
    if room in MAY_IMPORT:
        assert rooms_imported(module) - {room} <= MAY_IMPORT[room]
        if room == "ctl":  # the record of mounts, which knows neither trio nor FUSE
            assert "conffile" not in rooms_imported(module) or module.name == "records.py"
            assert {name.rpartition(".")[0] for name in imports(module) if name.startswith("iscsifs.fs")} <= {
                "iscsifs.fs.record"
            }
        if room == "target" and module.name != "cli.py":
            assert rooms_imported(module).isdisjoint({"secret", "terminal"})


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_from_elsewhere_stay_where_they_belong(module: Path) -> None:
    room = room_of(module)
    outside = {name.split(".")[0] for name in imports(module)} & KNOWN_OUTSIDE
    assert outside <= OUTSIDE.get(room, set())


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_protocols_do_no_io(module: Path) -> None:
    if room_of(module) in SANS_IO:
        assert not {name.split(".")[0] for name in imports(module)} & NOT_SANS_IO


def users_of(package: str) -> set[str]:
    return {
        str(module.relative_to(ROOT))
        for module in MODULES
        if package in {name.split(".")[0] for name in imports(module)}
    }


@pytest.mark.parametrize("module", sorted((ROOT / "fs/platform").glob("*.py")), ids=lambda path: path.name)
def test_what_works_around_the_platform_knows_nothing_of_the_rest(module: Path) -> None:
    """It can be taken away without touching anything else."""
    names = {name for name in imports(module) if name.split(".")[0] == "iscsifs"}
    own = {name for name in names if name.startswith("iscsifs.fs.platform.")}
    assert {name.split(".")[1] for name in names - own} <= {"errors", "limits"}


def test_few_modules_know_pyfuse3() -> None:
    assert users_of("pyfuse3") == {
        "fs/operations.py",
        "fs/mount.py",
        "fs/kernel.py",
        "fs/platform/requests.py",
    }


def test_of_the_file_system_only_the_operations_answer_with_errno() -> None:
    # A mount whose program has died is known by ENOTCONN, for which Python has no class.
    users = {user for user in users_of("errno") if user.startswith("fs/")}
    assert users == {"fs/operations.py", "fs/mount.py"}


def test_rules_are_for_rooms_that_exist() -> None:
    rooms = {room_of(module) for module in MODULES}
    assert set(MAY_IMPORT) <= rooms
    assert rooms - set(MAY_IMPORT) == {"__init__", "__main__", "cli"}  # which may import anything
