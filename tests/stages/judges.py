"""Small random scorers, in folders as a stage loads them."""

import dataclasses

from uae_jax.models import clip
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.rewards.reconstruction import RewardPart
from uae_jax.stages import models
from uae_jax.weights import checkpoint, dinov2, new
from uae_jax.weights.clip import MODEL
from uae_jax.weights.pretrained import save_pretrained

SIDE = 16


def write(folder) -> tuple[RewardPart, ...]:
    """Writes a CLIP, which is rewarded, and a DINOv2, which is held out."""
    vision = dataclasses.replace(clip.tiny().vision, width=16, hidden=16, depth=1, heads=2, image_size=SIDE)
    text = dataclasses.replace(clip.tiny().text, width=16, hidden=16, depth=1, heads=2)
    small = {
        "clip": (MODEL, clip.CLIPConfig(vision, text, projection=64)),
        "dinov2": (dinov2.ARCHITECTURE, dataclasses.replace(DINOv2Config.tiny(), image_size=SIDE, width=16, layers=1)),
    }
    parts = []
    for number, (name, (architecture, config)) in enumerate(small.items()):
        save_pretrained(new.new_model(architecture, config, seed=number), folder / name)
        settings = models.image_settings(None, name, SIDE)
        checkpoint.write_json(folder / name / "preprocessor_config.json", settings)
        parts.append(RewardPart(name, float(name == "clip"), str(folder / name)))
    return tuple(parts)
