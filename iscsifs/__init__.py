"""iSCSI targets as files: a FUSE file system with an iSCSI initiator inside."""

__version__ = "0.1.0"
