"""Fuzz harnesses: plain Python, which ``contrib/fuzz`` and the tests drive."""
