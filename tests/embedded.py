"""The embedded target as a process, in the shape of the real ones."""

import sys
from pathlib import Path
from typing import ClassVar

from targets import Chap, Daemon


class Embedded(Daemon):
    """The command iscsifs-target, from this working tree; it has one target at one address."""

    program: ClassVar[str] = "python3"  # for what looks whether the program is there
    first_lun: ClassVar[int] = 0
    _ENVIRONMENT: ClassVar[dict[str, str]] = {"PYTHONPATH": str(Path(__file__).parents[1])}

    def _command(self) -> list[str]:
        (target,) = self.targets
        (address,) = self.addresses
        (block_size,) = {unit.block_size for unit in target.units}
        (read_only,) = {unit.read_only for unit in target.units}
        command = [sys.executable, "-m", "iscsifs.target", "--bind", address, "--port", str(self.port)]
        command += ["--name", target.name, "--block-size", str(block_size)]
        command += ["--read-only"] if read_only else []
        command += self._chap(target.chap) if target.chap else []
        return command + [str(unit.image) for unit in target.units]

    def _chap(self, chap: Chap) -> list[str]:
        command = []
        for option, user, secret in (
            ("", chap.user, chap.secret),
            ("target-", chap.target_user, chap.target_secret),
        ):
            if user:
                file = self.home / f"{option}secret"
                file.touch(mode=0o600)
                file.write_text(secret)
                command += [f"--{option}user", user, f"--{option}secret-file", str(file)]
        return command

    def _configure(self) -> None:
        """Nothing is left to do: the command line had it all."""

    def _shut_down(self) -> None:
        self.process.terminate()
