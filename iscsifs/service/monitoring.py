"""What the tree shows of a living set: the files of sessions and disks, and the metrics."""

from collections.abc import Iterator

from iscsifs.fs.tree import TargetDirectory, UnitDirectory
from iscsifs.service.living import LivingSet
from iscsifs.service.metrics import Shown, show_metrics
from iscsifs.service.session_files import show_session
from iscsifs.service.unit_files import show_counts


def show_monitoring(living: LivingSet) -> None:
    """Have the tree of *living* show what its targets and disks do, also of those that come."""
    tree = living.tree

    def show_target(directory: TargetDirectory) -> None:
        (attached,) = living.at(directory.path)
        show_session(tree, directory, attached.target.report)

    def show_unit(target: TargetDirectory, directory: UnitDirectory) -> None:
        show_counts(tree, directory)

    def targets() -> Iterator[Shown]:
        for attached in living.targets:
            yield Shown(living.directory_of(attached), attached.target.report)

    living.on_target.append(show_target)
    tree.on_unit.append(show_unit)
    show_metrics(tree, targets, living.events)
