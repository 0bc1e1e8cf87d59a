"""What a peer can cost us at most: memory, counts and time. All bounds of that kind are here.

A target may be broken or hostile. Whatever it sends, one session with it keeps no more than this:

- 12 KiB of headers, and one data segment of 1 MiB while it arrives;
- 64 KiB of text in a login;
- 256 commands on the wire, each with the buffer that its caller brought, and 252 bytes of sense data when it
  has ended;
- 64 answers to pings, 48 bytes each, and 1024 tags of aborted commands;
- what it says of 16,384 logical units, 8 KiB each: 128 MiB;
- for each of these, 96 MiB that were written by those who use it. They are not copied to be sent, and their
  headers are made for 512 Data-Outs at a time;
- and 65,536 ranges that a truncation by its users makes zeros, some 100 bytes each.

A discovery session keeps one answer to SendTargets: 16 MiB while it arrives, and with its 262,144 pairs up to
eight times as much while it is read.

An iSNS server can have us keep one message of 1 MiB for each of 17 connections while it arrives, with 16 MiB
more while one of them is read, and what it says of 4,096 targets with 32 portals each.

Waiting ends as well, by the times here and by those that the user sets (`initiator.options`). Constants of
the standards are where they are used, and so is what serves speed alone. What all this comes to is measured
by `tests/faults/test_hostile_memory.py`.
"""

from typing import Final

# A connection in either role.

MAX_DATA_SEGMENT_LENGTH: Final = 1 << 20
"""Bytes of one data segment: the MaxRecvDataSegmentLength that we declare (RFC 7143 section 13.12)."""

# Logins: text, exchanges, and where they lead.

MAX_TEXT_LENGTH: Final = 65536
"""Bytes of text that we take in one negotiation (section 6.1 demands 8192, and 65536 for authentication)."""

MAX_TEXT_PIECES: Final = 128
"""PDUs that the text of one negotiation may come in."""

MAX_PAIRS: Final = 1 << 18
"""Pairs of key and value in one text: here each takes several times what it took on the wire."""

MAX_LOGIN_EXCHANGES: Final = 100
"""Login Requests in one login: an end to a target that always asks for another one (section 6.2)."""

MAX_REDIRECTIONS: Final = 8
"""Redirections that are followed for one login."""

MAX_CHALLENGES: Final = 4096
"""CHAP challenges that a process remembers, of its own and again of its peers', 1024 bytes each at most."""

LOGINS_AT_ONCE: Final = 8
"""Hosts, and then targets of each, that are talked to in parallel at the start. istgt takes one login after
the other and a second for each, in no order, so that with more some would not be done within the time-out."""

MAX_TARGETS: Final = 4096
"""Targets of one host that are logged in to; a hostile one may tell of thirty times as many."""

ATTACH_TIMEOUT: Final = 300.0
"""Seconds that all logins at the start may take, plus one login time-out. A target is left out if its login
and the discovery of its units are not complete by then. Thousands that answer take less than a minute."""

# Discovery: the answer to SendTargets.

MAX_ANSWER_LENGTH: Final = 1 << 24
"""Bytes of one answer to a Text Request: SendTargets may have 100,000 targets to tell of."""

MAX_ANSWER_PIECES: Final = MAX_ANSWER_LENGTH // 512
"""PDUs that such an answer may come in; 512 bytes is the smallest MaxRecvDataSegmentLength."""

MAX_ADDRESSES: Final = 32
"""Addresses of one target that are used: they are tried one after the other, each for the login time-out."""

ANSWER_TIMEOUT: Final = 30.0
"""Seconds that the whole answer to SendTargets may take."""

# iSNS: the server, which may also be anybody who answers in its place.

MAX_ISNS_MESSAGE_LENGTH: Final = 1 << 20
"""Bytes of one message of an iSNS server, of all its PDUs. Some 4,000 targets fit into it; a server that has
more to tell can be asked for one after the other."""

MAX_ISNS_PDUS: Final = 1024
"""PDUs that such a message may come in: 1 MiB in pieces as small as 1 KiB."""

MAX_ISNS_AUTHENTICATION_LENGTH: Final = 4096
"""Bytes of an authentication block (RFC 4171 section 5.5), which is skipped."""

ISNS_MESSAGE_TIMEOUT: Final = 10.0
"""Seconds from the first byte of a message to its last."""

ISNS_CONNECT_TIMEOUT: Final = 10.0
"""Seconds for a connection to one address of an iSNS server."""

ISNS_RESPONSE_TIMEOUT: Final = 15.0
"""Seconds that a request to an iSNS server may be without an answer; then the connection is closed."""

ISNS_FIRST_TIMEOUT: Final = 10.0
"""Seconds at the start after which nobody waits any longer for the first targets of an iSNS server."""

ISNS_LEAVE_TIMEOUT: Final = 2.0
"""Seconds at the end for the deregistration."""

MAX_ISNS_REQUESTS: Final = 8
"""Requests to an iSNS server that are without an answer at once."""

MAX_ISNS_REGISTRATIONS: Final = 5
"""Registrations in a row at an iSNS server: each has another form than those before."""

MAX_ISNS_INQUIRY_LENGTH: Final = 1 << 15
"""Bytes of a notification or an inquiry of an iSNS server: its answer has to fit into one PDU."""

MAX_ISNS_CHANGES: Final = 16
"""Names of changed targets that are remembered; where there are more, all are asked for."""

MAX_ISNS_CONNECTIONS: Final = 16
"""Connections at once by which an iSNS server may bring us notifications."""

ISNS_SHARE: Final = 0.25
"""The part of the time that reading the messages of one connection of an iSNS server may take, at most."""

MAX_ISNS_NOTES: Final = 100
"""Different remarks about an iSNS server in one connection to it; the rest is left out."""

MAX_ISNS_PAUSE: Final = 60.0
"""Seconds between two attempts to reach an iSNS server that is away or busy, before jitter."""

ISNS_REFUSED_PAUSE: Final = 600.0
"""Seconds after which a request is tried again that an iSNS server has refused for good."""

ISNS_POLL_INTERVAL: Final = 60.0
"""Seconds between two queries of an iSNS server that cannot notify us. A target that such a server does not
know any more, after it has lost our registration as well, is kept for as long."""

ISNS_SLOW_POLL_INTERVAL: Final = 300.0
"""The same for one that notifies us: a notification may be lost."""

MIN_ISNS_PERIOD: Final = 3
"""Seconds of the shortest registration period that is followed; a third of it passes between two messages."""

ISNS_COALESCE: Final = 1.0
"""Seconds between two queries that notifications bring about."""

ISNS_SETTLE: Final = 0.1
"""Seconds from a notification to the query: others follow, and open-isns 0.101 loses a response that comes
together with requests."""

# A connection in the full feature phase.

MAX_TASKS: Final = 256
"""Commands that may be on the wire of one connection at once, however wide the target's window is."""

MAX_SENSE_LENGTH: Final = 252
"""Bytes of sense data that are kept: 8 and the 244 that may follow them (SPC-3 section 4.5). What goes beyond
is cut off, as what it reports stands in front."""

MAX_OUTSTANDING_R2TS: Final = 16
"""R2Ts of one command that may wait for their data: the MaxOutstandingR2T that we offer (section 13.17)."""

MAX_UNSENT_ANSWERS: Final = 64
"""Answers to pings that may wait to be sent before the target is taken for a flooder."""

MAX_LATE_TAGS: Final = 1024
"""Tags of aborted tasks that are remembered, so that a late answer to them is not taken for an error."""

MAX_READS: Final = 32
"""Reads in a row from a socket that always has more, before other tasks get their turn."""

MAX_PDUS: Final = 64
"""PDUs received, and Data-Outs made, after which others get their turn; the last read may bring 256 PDUs
more. Each takes some microseconds, a reported error more."""

MAX_DATA_OUTS: Final = 512
"""Data-Outs that are made in a row: one R2T may ask for tens of thousands."""

NOTES_A_MINUTE: Final = 20
"""Lines in the log about a target's unsolicited messages and oddities; the rest is left out."""

LINES_A_MINUTE: Final = 200
"""Lines in the log from each place in the code that writes any, whoever caused them; the rest is counted."""

REPEATS_INTERVAL: Final = 60.0
"""Seconds in which messages of one kind are one line in the log, and a second one that counts the others; the
embedded target counts so as well."""

MAX_KINDS: Final = 4096
"""Kinds of messages that are counted at once; others are logged as they come."""

NOTES_A_LIST: Final = 20
"""Lines in the log for what is left out of one list of targets or units; the rest is counted."""

# A session over several connections, and the commands that it repeats.

MAX_ATTEMPTS: Final = 5
"""Sessions that may be lost while one command is on the wire; then that command fails."""

MAX_REPEATS: Final = 8
"""How often a command is repeated at once because of unit attentions and the like."""

MAX_ABORTS: Final = 2
"""How often a command is repeated that was aborted, most often because it had no answer."""

MANAGEMENT_TIMEOUT: Final = 10.0
"""Seconds that a task management function may take before something stronger follows."""

MAX_TIME2WAIT: Final = 60.0
"""Seconds at most to stay away after a session was lost, whatever the target says: DefaultTime2Wait may be an
hour, Time2Wait of a logout and Parameter2 of an asynchronous message 18 hours (sections 13.15, 11.15.3 and
11.9). No other time that a target names is waited for."""

LOGOUT_TIMEOUT: Final = 5.0
"""Seconds that a logout may take that the target has asked for, before the connection is closed without
it."""

LAST_LOGOUT_TIMEOUT: Final = 2.0
"""Seconds for the logout at the end of any session: no data depend on its answer."""

ATTEMPT_PATIENCE: Final = 3.0
"""Seconds that a command may wait for the login that it has caused, where the target has been away for longer
than the replacement time-out."""

ATTEMPT_PAUSE: Final = 1.0
"""Seconds after such a login has failed in which commands fail at once and cause none."""

# Logical units.

MAX_LUNS: Final = 16384
"""How many units of one target are looked at: what flat space addressing (14 bits) can tell apart."""

PROBES_AT_ONCE: Final = 16
"""Logical units of one target that are looked at in parallel."""

MAX_DESIGNATORS: Final = 32
"""Designators of one unit (VPD page 83h) that are kept."""

UNIT_GRACE: Final = 10.0
"""Seconds after a new login, or after it has reported that it may be another, in which a unit may be missing:
a target that starts may let us in before it has set up its units."""

MAX_UNWRITTEN: Final = 32 * 1024 * 1024
"""Bytes for one unit that may wait to be written; then writers wait."""

MAX_UNSYNCHRONISED: Final = 64 * 1024 * 1024
"""Bytes of data written to one unit that are kept until they are synchronised."""

MAX_HOLES: Final = 1 << 16
"""Ranges of one unit that read as zeros without having been written, after a truncation; then writers wait
until they are zeroed."""

MAX_ROUNDS: Final = 8
"""How often a write, a read or a flush is repeated because the target has lost its cache in the meantime."""

END_TIMEOUT: Final = 30.0
"""Seconds at the end of a mount for what is not yet on stable storage, and for requests in work."""

# The embedded target, and what an initiator can cost it.

MAX_CONNECTIONS: Final = 512
"""Connections that are served at once, whether logged in or not; half of the files that a process may usually
have open. When there are so many, a new one takes the place of one that has not logged in."""

LOGIN_TIMEOUT: Final = 10.0
"""Seconds that a login may take: a few exchanges of short texts."""

MAX_KINDS_OF_LINES: Final = 256
"""Kinds of lines that the target tells apart in counting them: each address of a peer makes its own."""

KEEPALIVE_IDLE: Final = 60
"""Seconds of silence after which TCP asks whether the initiator is still there, so that one without power
does not hold its connection for ever."""

KEEPALIVE_INTERVAL: Final = 10
"""Seconds between two such questions."""

KEEPALIVE_COUNT: Final = 6
"""How many of them may stay without an answer."""

COMMAND_WINDOW: Final = 128
"""Commands of one session that are taken at once."""

MAX_IMMEDIATE: Final = 32
"""Immediate commands that may be unanswered at once, beyond those that the window allows; also task
management requests that may wait until the tasks that they abort have had their data."""

MAX_HELD_LENGTH: Final = 32 << 20
"""Bytes of data that may wait with their commands for one of a smaller CmdSN (section 4.2.2.1)."""

MAX_HELD_PDUS: Final = 4096
"""PDUs that may wait for that."""

MAX_TRANSFER: Final = 64 << 20
"""Bytes that one READ or WRITE may move; the Block Limits page says so in blocks."""

MAX_UNMAP_DESCRIPTORS: Final = 256
"""Ranges that one UNMAP may name."""

MAX_COMPARE_AND_WRITE: Final = 255
"""Blocks that one COMPARE AND WRITE may compare: what its CDB has room for (SBC-3 section 5.2)."""

LOGGED_COMMANDS: Final = 100_000
"""Commands that a target for tests remembers."""

LOGGED_DATA: Final = 256 << 20
"""Bytes of data of these commands."""

# iscsifsctl.

MAX_STATE_FILE: Final = 64 << 20
"""Bytes of one text file of a mount that iscsifsctl reads: root looks into mounts of others too."""

MAX_LATENCY_BUCKETS: Final = 1024
"""Buckets of a latency histogram that iscsifsctl reads."""

# Monitoring.

MAX_EVENT_BYTES: Final = 1 << 20
"""Bytes of events that are kept, and as many of those before."""

MAX_METRIC_UNITS: Final = 4096
"""Logical units that the metrics tell of; each has some 80 lines."""

# Partitions, which whoever could write to a disk has named.

MAX_PARTITIONS: Final = 256
"""Partitions of one disk, as many as Linux shows."""

MAX_PARTITION_ENTRIES: Final = 256 << 10
"""Bytes of the entries of a GPT; 16 KiB are usual."""
