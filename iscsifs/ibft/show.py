"""What an iBFT says, as text files: the names of isboot's sysctls, and a directory for each structure.

No secret is in any of them.
"""

from collections.abc import Mapping

from iscsifs.ibft.model import Address, Ibft, Initiator, Nic, Target
from iscsifs.scsi.luns import lun_label


def text_files(ibft: Ibft) -> dict[str, str]:
    """Return the content of each file under its path: ``target_name``, ``nic0/mac``.

    The files at the top are of the target that comes first, and of the interface that it is reached over;
    what the table does not have has no file. Each ends with a newline.
    """
    shown = _first(ibft)
    if ibft.initiator is not None:
        shown |= _below("initiator", _initiator(ibft.initiator))
    for nic in ibft.nics:
        shown |= _below(f"nic{nic.index}", _nic(nic))
    for target in ibft.targets:
        shown |= _below(f"target{target.index}", _target(target))
    if ibft.notes:
        shown["notes"] = "\n".join(ibft.notes)
    return {path: f"{text}\n" for path, text in shown.items() if text}


def _first(ibft: Ibft) -> dict[str, str]:
    """Return what isboot has below hw.isboot."""
    shown = {
        "initiator_name": ibft.initiator_name or "",
        "oem_id": ibft.oem_id,
        "oem_table": ibft.oem_table_id,
    }
    targets = ibft.by_preference()
    target = targets[0] if targets else None
    nic = ibft.nic_of(target) if target else next(iter(ibft.nics), None)
    if nic is not None:
        shown["initiator_address"] = _text(nic.address)
        shown["nic_gateway"] = _text(nic.gateway)
        shown["nic_prefix"] = str(nic.prefix)
    if target is not None:
        fields = _target(target)
        shown |= {f"target_{name}": fields[name] for name in ("address", "lun", "name", "port")}
    return shown


def _initiator(initiator: Initiator) -> dict[str, str]:
    primary, secondary = initiator.radius
    return {
        "name": initiator.name or "",
        "isns_server": _text(initiator.isns),
        "slp_server": _text(initiator.slp),
        "primary_radius_server": _text(primary),
        "secondary_radius_server": _text(secondary),
        "flags": str(initiator.flags),
    }


def _nic(nic: Nic) -> dict[str, str]:
    primary, secondary = nic.dns
    return {
        "address": _text(nic.address),
        "prefix": str(nic.prefix),
        "origin": str(nic.origin),
        "gateway": _text(nic.gateway),
        "primary_dns": _text(primary),
        "secondary_dns": _text(secondary),
        "dhcp": _text(nic.dhcp),
        "vlan": str(nic.vlan) if nic.vlan else "",
        "mac": nic.mac,
        "device": nic.device,
        "host_name": nic.host_name or "",
        "flags": str(nic.flags),
    }


def _target(target: Target) -> dict[str, str]:
    credentials = target.credentials
    return {
        "address": target.portal.host,
        "port": str(target.portal.port),
        "lun": "" if target.lun is None else lun_label(target.lun),
        "name": target.name,
        "nic": str(target.nic),
        "chap_type": str(int(target.chap_type)),
        "chap_name": credentials.user if credentials else "",
        "reverse_chap_name": (credentials.target_user or "") if credentials else "",
        "flags": str(target.flags),
    }


def _below(directory: str, fields: Mapping[str, str]) -> dict[str, str]:
    return {f"{directory}/{name}": text for name, text in fields.items() if text}


def _text(address: Address | None) -> str:
    return "" if address is None else str(address)
