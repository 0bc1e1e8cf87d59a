"""The initiator on trio: sockets, sessions, discovery, and a logical unit as a range of bytes."""
