"""Log-probabilities of given tokens, without ever holding the logits of a long text.

Letters: B rows, T tokens, D width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.models.qwen2_5_vl.model import Qwen2_5_VL

Array = jax.Array


def token_scores(
    model: Qwen2_5_VL, variables: dict[str, Any], hidden: Array, targets: Array, chunk: int = 0
) -> tuple[Array, Array]:
    """Scores one token per hidden state.

    Args:
      model: the module, whose head is used.
      variables: {"params": ..., and maybe "lora": ...}.
      hidden: [B, T, D], final hidden states.
      targets: i32[B, T], the token that should follow each.
      chunk: how many positions' logits exist at a time, forwards and backwards; 0, or where it does not divide T: all.

    Returns:
      (f32[B, T] log-probability, bool[B, T] whether it is the likeliest token). Softmax in float32.
    """

    def score(states: Array, wanted: Array) -> tuple[Array, Array]:
        logits = model.apply(variables, states, method="logits").astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == wanted

    length = targets.shape[1]
    if not chunk or length <= chunk or length % chunk:
        return score(hidden, targets)

    def parts(x: Array) -> Array:  # [B, T, ...] -> [T / chunk, B, chunk, ...]
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    scored = jax.lax.map(jax.checkpoint(lambda pair: score(*pair)), (parts(hidden), parts(targets)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(targets.shape) for x in scored)
