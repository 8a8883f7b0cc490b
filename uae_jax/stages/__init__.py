"""Stages of training: each file says what is trained, what a batch is, and one loss."""
