"""What a mount says of itself in the files of ``.iscsifs/``."""

from dataclasses import fields
from functools import partial

import iscsifs
from iscsifs.config import Config, Host
from iscsifs.errors import printable
from iscsifs.fs.live_file import TurnedFile
from iscsifs.fs.nodes import Directory
from iscsifs.fs.tree import Tree
from iscsifs.ibft.model import Ibft
from iscsifs.ibft.show import text_files
from iscsifs.initiator.options import InitiatorOptions
from iscsifs.iscsi.keys import format_value
from iscsifs.monitor.events import Events


def show_config(tree: Tree, config: Config, events: Events) -> None:
    """Give *tree* the directory of the mount's own files."""
    directory = tree.add_directory(tree.root, b".iscsifs")
    tree.add_text(directory, b"version", version_text)
    tree.add_text(directory, b"config", partial(config_text, config))
    events.changed = TurnedFile(tree, directory, b"events", lambda: events.current).turn
    if config.ibft is not None:
        show_firmware(tree, directory, config.ibft)


def show_firmware(tree: Tree, parent: Directory, ibft: Ibft) -> None:
    """Give *parent* a directory of what the firmware's table says, with a directory for each structure."""
    top = tree.add_directory(parent, b"ibft")
    for path, text in text_files(ibft).items():
        place, _, name = path.rpartition("/")
        directory = top
        if place:
            known = top.entries.get(place.encode())
            directory = known if isinstance(known, Directory) else tree.add_directory(top, place.encode())
        tree.add_text(directory, name.encode(), partial(str, text))


def version_text() -> str:
    """Return the version of the program."""
    return f"{iscsifs.__version__}\n"


def config_text(config: Config) -> str:
    """Return what is in force: a line of a name and a value for each setting, and for each host a block.

    Secrets are left out; users are named.
    """
    lines = [f"mount_point {config.mount_point}", f"source {config.source}"]
    lines += [f"pattern {pattern}" for pattern in config.patterns]
    options = config.mount_options
    lines += [f"{name} {_value(getattr(options, name))}" for name in _SHOWN]
    for host in config.hosts:
        lines += ["", *_lines_of_host(host)]
    for server in config.name_servers:
        lines += ["", f"isns {server.portal}", *_lines_of_place(server.target, server.lun)]
        lines += _lines_of_options(server.options)
    return "".join(f"{printable(line)}\n" for line in lines)


_SHOWN = ("uid", "gid", "read_only", "direct_io", "sync", "exclusive", "loop", "max_background", "read_ahead")


def _lines_of_host(host: Host) -> list[str]:
    spec = host.spec
    lines = [f"host {spec.portal}", *_lines_of_place(spec.target, spec.lun)]
    return lines + _lines_of_options(host.options)


def _lines_of_place(target: str | None, lun: str | None) -> list[str]:
    lines = [f"target {target}"] if target is not None else []
    return lines + ([f"lun {lun}"] if lun is not None else [])


def _lines_of_options(options: InitiatorOptions) -> list[str]:
    lines = []
    if (credentials := options.credentials) is not None:
        lines.append(f"user {credentials.user}")
        if credentials.target_user is not None:
            lines.append(f"target_user {credentials.target_user}")
    lines += [f"{key} {format_value(value)}" for key, value in options.offer.items()]
    return lines + [
        f"{field.name} {_value(getattr(options, field.name))}"
        for field in fields(options)
        if field.name not in ("credentials", "offer", "record")
    ]


def _value(value: object) -> str:
    """Return a setting as it is shown: yes or no, a number, a word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "name", value))
