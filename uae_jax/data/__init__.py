"""What goes in: images, prompts, and later whole data sets."""
