"""UAE, the multimodal auto-encoder of arXiv 2509.09666, in JAX."""

__version__ = "0.1.0"
