"""Configuration files of initiators: iscsi.conf(5), and the records of open-iscsi.

`files.load` and `records.import_records` read them; both give `model.Entry` objects. `files.save` writes
iscsi.conf(5), and `options.initiator_options` makes of an entry what a session is told.
"""
