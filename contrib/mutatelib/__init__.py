"""Mutations of the program, and the tests that ought to notice them; see contrib/mutate."""
