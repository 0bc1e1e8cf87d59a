"""What a user reads and writes: logical units, above the sessions by which they are reached."""
