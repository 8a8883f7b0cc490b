"""Sampling: captions token by token, images step by step; each a single compiled program."""
