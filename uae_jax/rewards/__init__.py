"""How alike two images are, in the eyes of models that took no part in making them."""
