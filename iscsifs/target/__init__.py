"""A small real target on the same codec: for a first try, and as the tests' scripted partner."""
