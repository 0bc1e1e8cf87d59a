"""All fuzz harnesses by name: each takes any bytes, and whatever it raises is a finding.

A harness is plain Python: ``contrib/fuzz`` drives it with atheris, the tests with Hypothesis and with the
seeds in ``tests/fuzz/seeds/NAME``.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from iscsifs.conffile.keywords import KEYWORDS
from iscsifs.iscsi.keys import METHOD_KEYS, OBSOLETE, TABLE
from support.fuzz import initiator, isns, parsers, sources, target


class Harness(NamedTuple):
    """A function to be fuzzed, and the *longest* input, in bytes, that has sense for it."""

    function: Callable[[bytes], None]
    longest: int


HARNESSES: Final[Mapping[str, Harness]] = {
    "initiator_stream": Harness(initiator.initiator_stream, 4096),
    "initiator_login": Harness(initiator.initiator_login, 4096),
    "target_stream": Harness(target.target_stream, 4096),
    "text": Harness(parsers.text, 4096),
    "chap": Harness(parsers.chap, 4096),
    "sense": Harness(parsers.sense, 260),
    "vital_product_data": Harness(parsers.vital_product_data, 1024),
    "mode_pages": Harness(parsers.mode_pages, 1024),
    "luns": Harness(parsers.luns, 1024),
    "capacity": Harness(parsers.capacity, 64),
    "addresses": Harness(parsers.addresses, 2048),
    "isns_stream": Harness(isns.isns_stream, 4096),
    "isns_payload": Harness(isns.isns_payload, 2048),
    "path_names": Harness(parsers.path_names, 1536),
    "iscsi_conf": Harness(sources.iscsi_conf, 2048),
    "open_iscsi_record": Harness(sources.open_iscsi_record, 4096),
    "ibft_table": Harness(sources.ibft_table, 1024),
    "root_path": Harness(sources.root_path, 512),
}

TOKENS: Final = (
    *(f"{name}=" for name in [*TABLE, *OBSOLETE, *METHOD_KEYS]),
    *(f"{row.name} = " for row in KEYWORDS.values()),
    *("None", "CRC32C", "CHAP", "Yes", "No", "Reject", "Irrelevant", "NotUnderstood", "Normal", "Discovery"),
    *(
        "iqn.2001-04.com.example:",
        "eui.0011223344556677",
        "naa.",
        "0x",
        "0b",
        "[fe80::1]",
        "127.0.0.1",
        ":3260",
    ),
)
"""Words of the protocol, which a fuzzer would need long to find."""
