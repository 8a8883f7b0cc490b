"""Benchmarks of the loop, of paintings and of understanding; each writes what the official tools read."""
