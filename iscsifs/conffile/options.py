"""From an entry to what a session is told, and back."""

from dataclasses import fields, replace
from typing import Final

from iscsifs.conffile.model import Endpoint, Entry
from iscsifs.initiator.options import Digests, InitiatorOptions
from iscsifs.iscsi.keys import INITIATOR_OFFER, Value
from iscsifs.iscsi.names import TargetAddress

_SAVED: Final = (
    *("discovery_auth", "login_timeout", "command_timeout", "ping_interval", "ping_timeout"),
    *("replacement_timeout", "trust_unidentified", "write_behind"),
)
"""Fields of InitiatorOptions that an entry has in its *session*."""

DEFAULTS: Final = {field.name: field.default for field in fields(InitiatorOptions)}
"""What a session is told where nothing is said."""

_DIGESTS: Final[dict[Digests, tuple[str, ...]]] = {
    "none": (),
    "header": ("HeaderDigest",),
    "data": ("DataDigest",),
    "all": ("HeaderDigest", "DataDigest"),
}


def initiator_options(entry: Entry, base: InitiatorOptions) -> InitiatorOptions:
    """Return *base*, which holds for all, with what *entry* says otherwise."""
    offer: dict[str, Value] = {**base.offer, **entry.offer}
    burst, first = offer.get("MaxBurstLength"), INITIATOR_OFFER["FirstBurstLength"]
    if isinstance(burst, int) and isinstance(first, int) and "FirstBurstLength" not in offer:
        offer["FirstBurstLength"] = min(burst, first)  # which must not be above the other (section 13.14)
    end = entry.endpoint
    return replace(
        base,
        initiator_name=end.name or base.initiator_name,
        alias=end.alias or base.alias,
        source_address=end.address or base.source_address,
        dscp=base.dscp if end.dscp is None else end.dscp,
        pcp=base.pcp if end.pcp is None else end.pcp,
        queue_depth=end.queue_depth or base.queue_depth,
        credentials=None if entry.anonymous else entry.credentials or base.credentials,
        offer=offer,
        **entry.session,
    )


def entry_of(
    nickname: str,
    address: TargetAddress,
    target_name: str | None,
    options: InitiatorOptions,
    lun: str | None = None,
) -> Entry:
    """Return the entry that says of a target what *options* do, as far as they differ from the defaults."""
    session = {name: getattr(options, name) for name in _SAVED if getattr(options, name) != DEFAULTS[name]}
    if "ping_timeout" in session:
        session["ping_interval"] = options.ping_interval
    digests: dict[str, Value] = dict.fromkeys(_DIGESTS[options.digests], ("CRC32C", "None"))
    return Entry(
        nickname,
        address,
        target_name,
        lun,
        endpoint=Endpoint(
            options.initiator_name,
            options.alias or None,
            options.source_address,
            options.dscp,
            options.pcp,
            options.queue_depth,
        ),
        credentials=options.credentials,
        anonymous=options.credentials is None,
        offer={**digests, **options.offer},
        session=session,
    )
