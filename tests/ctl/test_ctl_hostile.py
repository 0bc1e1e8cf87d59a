"""iscsifsctl reads whatever a mount says: root looks into mounts of others too."""

import io
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iscsifs.ctl.cli import main
from support.control_tree import HOST, ControlTree

_UNIT = f"{HOST}/disk/lun0"
_FILES = (
    *(".iscsifs/events", ".iscsifs/events.1", ".iscsifs/config", ".iscsifs/version", ".iscsifs/trace"),
    *(f"{HOST}/disk/session/{name}" for name in ("state", "parameters", "connections", "reconnects", "tsih")),
    *(f"{_UNIT}/statistics", f"{_UNIT}/latency"),
)
_COUNTS = (
    *("reads", "read_bytes", "read_errors", "read_seconds", "writes", "write_bytes", "write_errors"),
    *("write_seconds", "flushes", "flush_errors", "flush_seconds", "repeats", "depth", "deepest"),
    *("dirty_bytes", "unsynchronised_bytes", "losses"),
)
_COMMANDS = (
    ["list"],
    ["show"],
    ["show", "disk"],
    ["show", _UNIT],
    ["stats"],
    ["events"],
    ["trace", "status"],
)

numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["inf", "-inf", "nan", "1e400", "9" * 5000, "", "x", "٣"]),
)
texts = st.one_of(
    st.text(max_size=200),
    st.lists(numbers, max_size=4).map(" ".join),
    st.lists(numbers, min_size=len(_COUNTS), max_size=len(_COUNTS)).map(
        lambda values: "\n".join(f"{name} {value}" for name, value in zip(_COUNTS, values, strict=True))
    ),
    st.lists(st.tuples(numbers, numbers), max_size=5).map(
        lambda pairs: "\n".join(["read " + " ".join(f"{bound}:{count}" for bound, count in pairs)])
    ),
    st.fixed_dictionaries({"id": st.integers(), "text": st.text(), "host": st.text()}).map(str),
)


@settings(max_examples=150)
@given(file=st.sampled_from(_FILES), text=texts, is_json=st.booleans())
@example(file=f"{_UNIT}/statistics", text="\n".join(f"{name} inf" for name in _COUNTS), is_json=True)
@example(file=f"{_UNIT}/statistics", text="\n".join(f"{name} nan" for name in _COUNTS), is_json=False)
@example(file=f"{_UNIT}/statistics", text="\n".join(f"{name} 1e308" for name in _COUNTS), is_json=False)
@example(file=f"{_UNIT}/latency", text="read nan:1", is_json=False)
@example(file=f"{_UNIT}/latency", text=f"read 1:{'9' * 400} +Inf:0", is_json=False)
@example(file=".iscsifs/config", text="\x1b", is_json=False)
@example(file=f"{HOST}/disk/session/reconnects", text="9" * 5000, is_json=False)
@example(file=".iscsifs/trace", text="a b c d", is_json=False)
@example(file=".iscsifs/events", text='{"id": ' + "9" * 5000 + "}", is_json=False)
def test_no_text_makes_more_than_a_line_of_failure(file: str, text: str, is_json: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tree = ControlTree(Path(directory, "mnt"))
        tree.add_unit(tree.add_target())
        (tree.path / file).write_bytes(text.encode(errors="surrogatepass"))
        for command in _COMMANDS:
            out, error = io.StringIO(), io.StringIO()
            words = [*command, "--json"] if is_json else command
            with redirect_stdout(out), redirect_stderr(error):
                status = main(words, find_mount=tree.find)
            assert (status != 0) == bool(error.getvalue())
            assert error.getvalue().count("\n") <= 1
            assert (out.getvalue() + error.getvalue()).replace("\n", "").isprintable()
            if is_json and out.getvalue() and command != ["events"]:
                assert "NaN" not in out.getvalue()
                assert out.getvalue().count("\n") == 1


def test_the_links_of_a_unit_are_taken_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = ControlTree(tmp_path / "mnt")
    target = tree.add_target()
    tree.add_unit(target, blocksize="9" * 200, vendor="%ff%00%zz", serial="٣")
    (target / "port").unlink()
    (target / "port").symlink_to("-1")
    for command in _COMMANDS:
        assert main(command, find_mount=tree.find) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()
    assert sys.get_int_max_str_digits() >= 4300
