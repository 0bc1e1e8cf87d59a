"""The log of events: JSON lines, bounded, readable by name while it is turned."""

import json
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from iscsifs.monitor.events import MAX_TEXT, EventFile, Events


def lines(file: EventFile | None) -> list[dict[str, object]]:
    assert file is not None
    return [json.loads(line) for line in bytes(file.data).splitlines()]


def test_an_event_is_one_line_with_its_number_its_time_and_where_it_happened() -> None:
    events = Events(clock=lambda: 1_800_000_000_250_000_000)
    number = events.add("login_failed", "10.4.0.42: no answer", host="10.4.0.42", lun=3)
    assert number == events.last_id == 1
    assert bytes(events.current.data) == (
        b'{"id": 1, "time": "2027-01-15T08:00:00.250Z", "event": "login_failed",'
        b' "host": "10.4.0.42", "lun": 3, "text": "10.4.0.42: no answer"}\n'
    )
    assert events.current.modified_ns == 1_800_000_000_250_000_000


@given(st.text(), st.text())
def test_no_text_of_the_network_breaks_a_line_or_reaches_a_terminal(name: str, text: str) -> None:
    events = Events()
    events.add("kind", text, target=name)
    raw = bytes(events.current.data)
    assert raw.count(b"\n") == 1
    assert all(byte == 0x0A or 0x20 <= byte <= 0x7F for byte in raw)
    (event,) = lines(events.current)
    for sent, kept in (name, event["target"]), (text, event["text"]):
        assert kept == (sent if len(sent) <= MAX_TEXT else sent[: MAX_TEXT - 3] + "...")


def test_a_full_log_is_turned_and_tears_no_line() -> None:
    now = count(1)
    events = Events(clock=lambda: next(now), bound=1000)
    read: list[object] = []
    followed = events.current
    seen = 0
    for number in range(50):
        events.add("tick", f"event {number}")
        if events.current is not followed:
            assert events.previous is followed
            read += lines(followed)[seen:]
            followed, seen = events.current, 0
        assert len(events.current.data) <= 1000
        new = lines(followed)[seen:]
        read += new
        seen += len(new)
    assert [event["id"] for event in read] == list(range(1, 51))  # type: ignore[index]


def test_one_event_beyond_the_bound_is_kept_alone() -> None:
    events = Events(bound=100)
    events.add("long", "x" * 200)
    events.add("long", "y" * 200)
    assert len(lines(events.previous)) == len(lines(events.current)) == 1


def test_a_change_is_told_after_the_event_is_there() -> None:
    events = Events()
    seen: list[int] = []
    events.changed = lambda: seen.append(len(events.current.data))
    events.add("one", "first")
    assert seen == [len(events.current.data)]
