"""iSNS (RFC 4171), the client's side, without I/O: bytes and time in, bytes and events out."""
