"""Coverage-guided fuzzing: what contrib/fuzz is made of."""
