"""Parity: the same numbers as the libraries that people come from."""
