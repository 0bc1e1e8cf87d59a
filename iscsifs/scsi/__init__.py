"""SPC and SBC without I/O: command descriptor blocks out; INQUIRY, VPD, mode pages, capacity and sense in."""
