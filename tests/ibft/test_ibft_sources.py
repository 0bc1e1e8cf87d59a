"""Where an iBFT is found, how sysfs shows it, and what is shown of it."""

import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsifs.errors import ConfigError
from iscsifs.ibft import sysfs, table
from iscsifs.ibft.search import NoIbft, find
from iscsifs.ibft.show import text_files
from support.ibft_tables import FILES, TABLE, TARGET, changed, target, with_strings, with_targets


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)


@pytest.mark.conformance("IBFT-2.2")
def test_sysfs_says_what_the_table_says() -> None:
    whole = table.parse(TABLE)
    without_device = replace(whole, nics=tuple(replace(nic, device="") for nic in whole.nics))
    assert sysfs.parse(FILES) == without_device
    without_newlines = {path: content.rstrip(b"\n") for path, content in FILES.items()}
    assert sysfs.parse(without_newlines) == without_device


@pytest.mark.conformance("IBFT-2.2")
def test_a_file_that_is_absent_is_a_field_that_is_absent() -> None:
    fewer = {path: content for path, content in FILES.items() if "dns" not in path and "vlan" not in path}
    (nic,) = sysfs.parse(fewer).nics
    assert (nic.dns, nic.vlan, nic.host_name) == ((None, None), 0, None)
    no_name = {path: content for path, content in FILES.items() if "target-name" not in path}
    found = sysfs.parse(no_name)
    assert (found.targets, found.notes) == ((), ("target 0: it has no name; left out",))


@pytest.mark.conformance("IBFT-2.3")
@pytest.mark.parametrize(
    ("text", "lun"),
    [
        (b"00000000\n", 0),
        (b"01000000\n", 1 << 48),
        (b"0a000000", 10 << 48),
        (b"010000000\n", None),
        (b"0100000\n", None),
        (b"410000000\n", None),
        (b"0x000000\n", None),
    ],
)
def test_only_a_lun_of_eight_digits_is_certain(text: bytes, lun: int | None) -> None:
    found = sysfs.parse(FILES | {"target0/lun": text})
    assert found.targets[0].lun == lun
    assert (found.notes == ()) == (lun is not None)


@pytest.mark.conformance("IBFT-2.4")
def test_the_reverse_secret_has_its_own_spelling() -> None:
    both = {
        "target0/chap-type": b"2\n",
        "target0/rev-chap-name": b"array\n",
        "target0/rev-chap-name-secret": b"secretsecret2\n",
    }
    (disk,) = sysfs.parse(FILES | both).targets
    assert disk.credentials is not None
    assert (disk.credentials.target_user, disk.credentials.target_secret) == ("array", b"secretsecret2")


@pytest.mark.parametrize(
    "change",
    [
        {"target0/port": b"-1\n"},
        {"target0/port": b"99999\n"},
        {"target0/ip-addr": b"nowhere\n"},
        {"target0/target-name": b"iqn.2001-04.com.example:\x1b[31m\n"},
        {"target0/flags": b"x\n"},
        {"target0/chap-type": b"9\n"},
        {"target0/target-name": b"\xff\xfe\n"},
    ],
)
def test_a_structure_of_sysfs_that_is_wrong_is_left_out(change: dict[str, bytes]) -> None:
    found = sysfs.parse(FILES | change)
    assert found.targets == ()
    assert found.nics
    (note,) = found.notes
    assert note.isascii()
    assert note.isprintable()


@given(
    st.dictionaries(st.sampled_from([*FILES, "target1/lun", "x", "ethernet1/mac"]), st.binary(max_size=20))
)
def test_any_files_are_read_or_left_out(files: dict[str, bytes]) -> None:
    assert all(note.isascii() and note.isprintable() for note in sysfs.parse(FILES | files).notes)


@pytest.mark.conformance("IBFT-2.1")
def test_a_file_comes_before_sysfs_and_sysfs_before_acpi(tmp_path: Path) -> None:
    file, firmware = tmp_path / "table", tmp_path / "firmware"
    file.write_bytes(changed((TARGET + 22, struct.pack("<H", 1))))
    write(firmware / "ibft", FILES | {"target0/port": b"2\n"})
    for number, name in enumerate(["iBFT1", "IBFT", "BIFT"]):
        write(firmware / "acpi" / "tables", {name: changed((TARGET + 22, struct.pack("<H", 3 + number)))})
    write(firmware / "acpi" / "tables", {"FACP": b"x", "data/BERT": b"y"})

    def port() -> int:
        return find(firmware=firmware).targets[0].portal.port

    assert find(file, firmware).targets[0].portal.port == 1
    assert port() == 2
    for path in FILES:
        (firmware / "ibft" / path).unlink()
    for number, name in enumerate(["iBFT1", "IBFT", "BIFT"]):
        assert port() == 3 + number
        (firmware / "acpi" / "tables" / name).unlink()


@pytest.mark.conformance("IBFT-2.3")
def test_a_lun_that_sysfs_does_not_tell_is_that_of_the_table(tmp_path: Path) -> None:
    write(tmp_path / "ibft", FILES | {"target0/lun": b"410000000\n"})
    assert find(firmware=tmp_path).targets[0].lun is None
    lun = bytes.fromhex("4100000000000000")
    write(tmp_path / "acpi" / "tables", {"iBFT": changed((TARGET + 24, lun))})
    assert find(firmware=tmp_path).targets[0].lun == 0x4100 << 48


def test_links_of_sysfs_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "ibft", FILES)
    (tmp_path / "ibft" / "ethernet0" / "device").symlink_to(tmp_path)
    (tmp_path / "ibft" / "ethernet0" / "hostname").symlink_to("/etc/hostname")
    (tmp_path / "ibft" / "target1").symlink_to("target0")
    found = find(firmware=tmp_path)
    assert len(found.targets) == 1
    assert found.nics[0].host_name is None


@pytest.mark.conformance("IBFT-2.1")
def test_who_may_not_read_it_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ibft", FILES)
    opened = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path).name == "chap-secret":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"chap-secret: Permission denied.*only root may read it$"):
        find(firmware=tmp_path)


@pytest.mark.conformance("IBFT-3.4")
def test_where_there_is_none_both_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoIbft) as caught:
        find(firmware=tmp_path)
    assert f"{tmp_path}/ibft" in str(caught.value)
    assert f"{tmp_path}/acpi/tables" in str(caught.value)
    assert "modprobe iscsi_ibft" in str(caught.value)
    (tmp_path / "ibft").mkdir()  # as the module leaves it
    with pytest.raises(NoIbft):
        find(firmware=tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        find(tmp_path / "missing")


@pytest.mark.conformance("IBFT-2.5")
def test_text_files_are_called_as_isboots_sysctls() -> None:
    shown = text_files(table.parse(TABLE))
    at_the_top = {path: text for path, text in shown.items() if "/" not in path}
    assert at_the_top == {
        "initiator_name": "iqn.2026-11.bars:ipxe\n",
        "initiator_address": "10.0.2.15\n",
        "nic_gateway": "10.0.2.2\n",
        "nic_prefix": "24\n",
        "target_address": "10.0.2.2\n",
        "target_port": "42289\n",
        "target_lun": "0\n",
        "target_name": "iqn.2026-11.bars:boot\n",
        "oem_id": "FENSYS\n",
        "oem_table": "iPXE\n",
    }
    assert shown["target0/chap_name"] == "joe\n"
    assert shown["nic0/mac"] == "52:54:00:12:34:56\n"
    assert shown["nic0/device"] == "00:02.0\n"
    assert "nic0/vlan" not in shown


@pytest.mark.conformance("IBFT-2.5")
def test_no_secret_is_shown() -> None:
    data, pointers = with_strings(b"array", b"reversesecret")
    found = table.parse(
        changed((TARGET + 32, b"\x02"), (TARGET + 46, pointers[0]), (TARGET + 50, pointers[1]), table=data)
    )
    assert found.targets[0].credentials is not None
    everything = repr(found) + "".join(f"{path}{text}" for path, text in text_files(found).items())
    assert "secretsecret1" not in everything
    assert "reversesecret" not in everything
    assert text_files(found)["target0/reverse_chap_name"] == "array\n"


@pytest.mark.conformance("IBFT-1.13", "IBFT-2.5")
def test_the_files_at_the_top_are_of_what_was_booted_from() -> None:
    second = target(1, at_5=b"\x03", at_22=struct.pack("<H", 99))
    shown = text_files(table.parse(with_targets(target(0, at_5=b"\x01", at_33=b"\x05"), second)))
    assert shown["target_port"] == "99\n"
    assert shown["target0/port"] == "42289\n"
    assert shown["notes"] == "target 0: there is no network interface 5\n"
    assert text_files(table.parse(changed((0x38, bytes(10))))) == {
        "oem_id": "FENSYS\n",
        "oem_table": "iPXE\n",
    }
