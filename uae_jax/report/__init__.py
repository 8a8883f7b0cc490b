"""One HTML file about a training run: what it measured, drew and was set to."""
