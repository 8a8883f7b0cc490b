"""Sizes smaller than any that ship, of every kind of layer, so that tests are quick."""

from uae_jax.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from uae_jax.models.sd3 import SD3Config


def small_sd3() -> SD3Config:
    """Both kinds of layer, and SD3's number of latent channels."""
    return SD3Config(
        num_layers=3,
        num_heads=4,
        head_dim=16,
        context_dim=64,
        pooled_dim=64,
        sample_size=16,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
    )


def small_clip() -> CLIPConfig:
    """Two layers a tower."""
    vision = CLIPVisionConfig(width=32, hidden=64, depth=2, heads=2, image_size=32, patch_size=8, projection=16)
    text = CLIPTextConfig(width=32, hidden=64, depth=2, heads=2, vocab=512, positions=77, projection=16)
    return CLIPConfig(vision, text, projection=16)
