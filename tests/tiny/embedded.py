"""Whether the embedded model is whole."""

import pytest

from uae_jax.weights import checkpoint

FOLDER = checkpoint.EMBEDDED / "tiny"
PARTS = ("llm_model", "dit", "SD3/vae", *(f"scorers/{name}" for name in ("clip", "longclip", "dinov2", "dinov3")))
MISSING = [part for part in PARTS if not list((FOLDER / part).glob("*.safetensors"))]

needed = pytest.mark.skipif(bool(MISSING), reason=f"weights not trained yet: {', '.join(MISSING)}")
