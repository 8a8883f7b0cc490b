"""Offline twins of the benchmarks on the scene world: `uae bench scenes`."""
