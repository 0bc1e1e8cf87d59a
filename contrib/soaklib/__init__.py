"""What contrib/soak is made of: fio that verifies what it reads, on targets that are never left alone."""
