"""All fuzz harnesses by name: each takes any bytes, and whatever it raises is a finding.

A harness is plain Python: ``contrib/fuzz`` drives it with atheris, the tests with the seeds in ``seeds/NAME``
and with Hypothesis.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import harness_initiator
import harness_parsers
import harness_target

from iscsifs.iscsi.keys import METHOD_KEYS, OBSOLETE, TABLE


class Harness(NamedTuple):
    """A function to be fuzzed, and the *longest* input, in bytes, that has sense for it."""

    function: Callable[[bytes], None]
    longest: int


HARNESSES: Final[Mapping[str, Harness]] = {
    "initiator_stream": Harness(harness_initiator.initiator_stream, 4096),
    "initiator_login": Harness(harness_initiator.initiator_login, 4096),
    "target_stream": Harness(harness_target.target_stream, 4096),
    "text": Harness(harness_parsers.text, 4096),
    "chap": Harness(harness_parsers.chap, 4096),
    "sense": Harness(harness_parsers.sense, 260),
    "vital_product_data": Harness(harness_parsers.vital_product_data, 1024),
    "mode_pages": Harness(harness_parsers.mode_pages, 1024),
    "luns": Harness(harness_parsers.luns, 1024),
    "capacity": Harness(harness_parsers.capacity, 64),
    "addresses": Harness(harness_parsers.addresses, 2048),
    "path_names": Harness(harness_parsers.path_names, 1536),
}

TOKENS: Final = (
    *(f"{name}=" for name in [*TABLE, *OBSOLETE, *METHOD_KEYS]),
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
