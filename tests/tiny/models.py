"""Random models of the tiny sizes, made without compiling anything."""

import jax
import ml_dtypes
import numpy as np

from uae_jax.weights import checkpoint, new, uae
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.pretrained import save_pretrained
from uae_jax.weights.uae import UAEWeights


def random_model(part, seed=0, dtype=np.float32, std=0.05):
    """A part of the UAE model, or one of its scorers."""
    kind, config = {**new.UAE_SIZES["tiny"], **new.SCORER_SIZES["tiny"]}[part]
    rng = np.random.default_rng([seed, *part.encode()])

    def values(leaf):
        return (std * rng.standard_normal(leaf.shape)).astype(dtype)

    return Pretrained(kind, config(), jax.tree.map(values, kind.abstract(config())))


def random_uae(seed=0, dtype=ml_dtypes.bfloat16):
    """All parts, with the files that ship."""
    parts = {part: random_model(part, seed, dtype) for part in new.UAE_SIZES["tiny"]}
    return UAEWeights(**parts, files=uae.read_files("tiny"))


def write_runs(folder):
    """Folders as training leaves them: part -> run."""
    runs = {part: folder / part for part in ("encoder", "decoder", "vae", "clip", "longclip", "dinov2", "dinov3")}
    for seed, part in enumerate(("encoder", "decoder")):
        uae.save_published(random_uae(seed), runs[part] / "model")
    for part in ("vae", "clip", "longclip", "dinov2", "dinov3"):
        save_pretrained(random_model(part), runs[part] / "model")
    for part in ("clip", "longclip"):
        tokenizer = checkpoint.resolve(f"tiny/scorers/{part}") / "tokenizer.json"
        (runs[part] / "model/tokenizer.json").write_bytes(tokenizer.read_bytes())
    return runs
