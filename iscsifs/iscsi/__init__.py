"""RFC 7143 without I/O: bytes, time and random numbers come in as arguments, bytes and events go out."""
