"""Metrics, as the parsers of prometheus_client read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser

from iscsifs.monitor.openmetrics import Family, Histogram, openmetrics, prometheus_text

WHERE = {"host": "h", "target": "t", "lun": "0"}


def families() -> list[Family]:
    read = Family("iscsifs_read_bytes", "counter", "Bytes read.", "bytes")
    read.add(WHERE, 12)
    depth = Family("iscsifs_queue_depth", "gauge", "Commands under way.")
    depth.add(WHERE, 3)
    depth.add({**WHERE, "lun": "1"}, 0)
    time = Family("iscsifs_read_duration_seconds", "histogram", "Time of a read.", "seconds")
    time.add(WHERE, Histogram((0.001, 0.01), (4, 2, 1), 0.5))
    build = Family("iscsifs_build", "info", "The program.")
    build.add({"version": "1.0"}, 1)
    empty = Family("iscsifs_empty", "gauge", "Nothing.")
    return [read, depth, time, build, empty]


def parsed_by_prometheus(text: bytes) -> list[Metric]:
    return list(parser.text_string_to_metric_families(text.decode()))  # type: ignore[no-untyped-call]


@pytest.mark.conformance("METRICS-1.3", "METRICS-1.5")
def test_openmetrics_is_written_as_the_standard_has_it() -> None:
    assert openmetrics(families()).decode().splitlines() == [
        "# TYPE iscsifs_read_bytes counter",
        "# UNIT iscsifs_read_bytes bytes",
        "# HELP iscsifs_read_bytes Bytes read.",
        'iscsifs_read_bytes_total{host="h",target="t",lun="0"} 12',
        "# TYPE iscsifs_queue_depth gauge",
        "# HELP iscsifs_queue_depth Commands under way.",
        'iscsifs_queue_depth{host="h",target="t",lun="0"} 3',
        'iscsifs_queue_depth{host="h",target="t",lun="1"} 0',
        "# TYPE iscsifs_read_duration_seconds histogram",
        "# UNIT iscsifs_read_duration_seconds seconds",
        "# HELP iscsifs_read_duration_seconds Time of a read.",
        'iscsifs_read_duration_seconds_bucket{host="h",target="t",lun="0",le="0.001"} 4',
        'iscsifs_read_duration_seconds_bucket{host="h",target="t",lun="0",le="0.01"} 6',
        'iscsifs_read_duration_seconds_bucket{host="h",target="t",lun="0",le="+Inf"} 7',
        'iscsifs_read_duration_seconds_count{host="h",target="t",lun="0"} 7',
        'iscsifs_read_duration_seconds_sum{host="h",target="t",lun="0"} 0.5',
        "# TYPE iscsifs_build info",
        "# HELP iscsifs_build The program.",
        'iscsifs_build_info{version="1.0"} 1',
        "# EOF",
    ]


@pytest.mark.conformance("METRICS-1.8")
def test_prometheus_client_reads_both_formats() -> None:
    parsed = parsed_by_prometheus(openmetrics(families()))
    assert [(family.name, family.type, family.unit) for family in parsed] == [
        ("iscsifs_read_bytes", "counter", "bytes"),
        ("iscsifs_queue_depth", "gauge", ""),
        ("iscsifs_read_duration_seconds", "histogram", "seconds"),
        ("iscsifs_build", "info", ""),
    ]
    older = list(text_parser.text_string_to_metric_families(prometheus_text(families()).decode()))
    samples = {sample.name: sample.value for family in older for sample in family.samples}
    assert samples["iscsifs_read_bytes_total"] == 12
    assert samples["iscsifs_read_duration_seconds_count"] == 7
    assert samples["iscsifs_build_info"] == 1


@pytest.mark.conformance("METRICS-1.4")
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_any_label_comes_back(text: str) -> None:
    family = Family("iscsifs_x", "gauge", "Anything.")
    family.add({"target": text}, 1.5)
    (parsed,) = parsed_by_prometheus(openmetrics([family]))
    assert parsed.samples[0].labels == {"target": text}
    assert parsed.samples[0].value == 1.5


@pytest.mark.conformance("METRICS-1.4")
def test_what_would_end_a_help_or_a_label_is_escaped() -> None:
    family = Family("iscsifs_x", "gauge", 'a "b" \\ c\nd')
    family.add({"target": '"\\\né'}, 1)
    lines = openmetrics([family]).decode().splitlines()
    assert lines[1:3] == [r"# HELP iscsifs_x a \"b\" \\ c\nd", r'iscsifs_x{target="\"\\\né"} 1']
    assert prometheus_text([family]).decode().splitlines()[0] == r'# HELP iscsifs_x a "b" \\ c\nd'


def test_nothing_at_all_is_an_end_mark() -> None:
    assert openmetrics([]) == b"# EOF\n"
    assert prometheus_text([]) == b""
