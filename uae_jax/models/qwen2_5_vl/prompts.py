"""A batch of prompts, as the model takes it.

Letters: B rows, T tokens.
"""

import flax.struct
import jax

from uae_jax.models.qwen2_5_vl.positions import ImagePatches

Array = jax.Array


@flax.struct.dataclass
class Prompts:
    """Everything about a batch of prompts that is known before the model runs; planned on the host.

    Attributes:
      tokens: i32[B, T], padded on the right.
      valid: bool[B, T], False at padding.
      positions: i32[3, B, T], M-RoPE.
      next_position: i32[B], the number of the first new token.
      images: the rows' images; None for text only.
      image_index: i32[B, T]; None for text only.
    """

    tokens: Array
    valid: Array
    positions: Array
    next_position: Array
    images: ImagePatches | None = None
    image_index: Array | None = None
