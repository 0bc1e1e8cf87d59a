"""SCSI without I/O: commands out, and what a logical unit answers in.

Nothing here knows of iSCSI: a command is bytes, an answer is bytes. Each module holds both directions of one
piece of the standards, so that the initiator and the embedded target share the same tables.

Clauses are those of SPC-3 (the edition that RFC 7143 refers to), SBC-3 and SAM-5; what is cited without a
number is cited by its title.
"""
