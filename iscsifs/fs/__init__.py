"""The file system: the tree, the operations that FUSE asks for, and the life of a mount."""
