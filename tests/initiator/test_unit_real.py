"""Giving blocks back to a real target."""

from pathlib import Path

import pytest

from iscsifs.errors import UnitError
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.names import Portal
from iscsifs.service import open_initiator
from support.targets import Istgt, Serve, Target, Tgt, Unit, make_image

NAME = "iqn.2001-04.com.example:thin"
OPTIONS = InitiatorOptions("iqn.2001-04.com.example:initiator")
MEGABYTE = 1 << 20

pytestmark = pytest.mark.real


async def test_tgt_takes_blocks_back(tmp_path: Path, serve: Serve) -> None:
    image = make_image(tmp_path / "disk.img", 4 * MEGABYTE)
    tgt = serve(Tgt(tmp_path, Target(NAME, [Unit(image, options={"thin_provisioning": "1"})])))
    async with open_initiator(OPTIONS) as initiator:
        target = await initiator.login(NAME, [Portal("127.0.0.1", tgt.port)])
        (unit,) = [unit for unit in target.units if unit.is_block]
        await unit.write(0, b"x" * 3 * MEGABYTE)
        await unit.flush()
        before = image.stat().st_blocks
        await unit.discard(MEGABYTE, MEGABYTE)
        await unit.flush()
        assert await unit.read(0, 4 * MEGABYTE) == (
            b"x" * MEGABYTE + bytes(MEGABYTE) + b"x" * MEGABYTE + bytes(MEGABYTE)
        )
        assert image.stat().st_blocks < before


async def test_istgt_says_that_it_takes_none(tmp_path: Path, serve: Serve) -> None:
    istgt = serve(Istgt(tmp_path, Target(NAME, [Unit(make_image(tmp_path / "disk.img", MEGABYTE))])))
    async with open_initiator(OPTIONS) as initiator:
        target = await initiator.login(NAME, [Portal("127.0.0.1", istgt.port)])
        with pytest.raises(UnitError, match="not thinly provisioned"):
            await target.units[0].discard(0, MEGABYTE)
