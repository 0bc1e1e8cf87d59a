"""Sources of targets: each tells of a set of targets, which may change while it runs."""
