"""The iSCSI Boot Firmware Table: what firmware has left for the system that it booted."""
