"""A power failure at any moment of the life of a file system: how it is recorded, and what it leaves."""
