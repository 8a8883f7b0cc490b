"""The one training loop: state, optimisers, checkpoints, metrics, progress."""
