"""What a mount says of itself in the files of ``.iscsifs/``."""

from dataclasses import fields
from functools import partial

import iscsifs
from iscsifs.config import Config, Host
from iscsifs.errors import printable
from iscsifs.fs.live_file import TurnedFile
from iscsifs.fs.tree import Tree
from iscsifs.monitor.events import Events


def show_config(tree: Tree, config: Config, events: Events) -> None:
    """Give *tree* the directory of the mount's own files."""
    directory = tree.add_directory(tree.root, b".iscsifs")
    tree.add_text(directory, b"version", version_text)
    tree.add_text(directory, b"config", partial(config_text, config))
    events.changed = TurnedFile(tree, directory, b"events", lambda: events.current).turn


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
    return "".join(f"{printable(line)}\n" for line in lines)


_SHOWN = ("uid", "gid", "read_only", "direct_io", "sync", "exclusive", "max_background", "read_ahead")


def _lines_of_host(host: Host) -> list[str]:
    spec, options = host.spec, host.options
    lines = [f"host {spec.portal}"]
    lines += [f"target {spec.target}"] if spec.target is not None else []
    lines += [f"lun {spec.lun}"] if spec.lun is not None else []
    if (credentials := options.credentials) is not None:
        lines.append(f"user {credentials.user}")
        if credentials.target_user is not None:
            lines.append(f"target_user {credentials.target_user}")
    lines += [f"{key} {value}" for key, value in options.offer.items()]
    return lines + [
        f"{field.name} {_value(getattr(options, field.name))}"
        for field in fields(options)
        if field.name not in ("credentials", "offer")
    ]


def _value(value: object) -> str:
    """Return a setting as it is shown: yes or no, a number, a word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "name", value))
