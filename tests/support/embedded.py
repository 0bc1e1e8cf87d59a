"""The embedded target as a process, in the shape of the real ones."""

import sys
from typing import ClassVar

from support import TOP
from support.targets import Chap, Daemon


class Embedded(Daemon):
    """The command iscsifs-target, from this working tree; one address, and the same users everywhere."""

    program: ClassVar[str] = "python3"  # for what looks whether the program is there
    first_lun: ClassVar[int] = 0
    _ENVIRONMENT: ClassVar[dict[str, str]] = {"PYTHONPATH": str(TOP)}

    def _command(self) -> list[str]:
        (address,) = self.addresses
        (chap,) = {target.chap for target in self.targets}
        (block_size,) = {unit.block_size for target in self.targets for unit in target.units}
        (read_only,) = {unit.read_only for target in self.targets for unit in target.units}
        command = [sys.executable, "-m", "iscsifs.target", "--bind", address, "--port", str(self.port)]
        command += ["--block-size", str(block_size)]
        command += ["--read-only"] if read_only else []
        command += self._chap(chap) if chap else []
        for target in self.targets:
            command += [target.name, *(str(unit.image) for unit in target.units)]
        return command

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
