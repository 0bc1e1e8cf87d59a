"""What serves only speed or scarcity, and work-arounds for pyfuse3, libfuse and the kernel.

`platform.Platform` is the interface for the life of a mount. `platform.LinuxPlatform` owns the objects of
this room, `platform.NoPlatform` does nothing. `pages` stands beside them: dropping stale pages is a matter of
correctness.
"""
