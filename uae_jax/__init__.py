"""UAE, the multimodal auto-encoder of arXiv 2509.09666, in JAX."""

__version__ = "0.1.0"
__all__ = ["UAE", "__version__"]


def __getattr__(name: str):
    if name == "UAE":  # imported when it is asked for, so that `uae --help` answers at once
        from uae_jax.pipeline import UAE

        return UAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
