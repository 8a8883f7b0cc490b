"""Checkpoints as others publish them <-> parameter trees, both directions, and the native format."""
