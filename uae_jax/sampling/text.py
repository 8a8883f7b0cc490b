"""Captions: prefill, then token by token, as one program.

Prompts are padded on the right; generated tokens take the slots behind the padding, the same slot for every row, and
padding is never seen. The G samples of a prompt share its prefill.

Letters: B prompts, G samples of each, R = B G rows, T prompt tokens, N new tokens, S = T + N slots, V vocabulary.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from uae_jax.models.qwen2_5_vl import decoding
from uae_jax.models.qwen2_5_vl.language import empty_cache
from uae_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.parallel.sharding import constrain
from uae_jax.sampling.tokens import TokenSampling, choose

Array = jax.Array


@flax.struct.dataclass
class Generation:
    """What was written.

    Attributes:
      tokens: i32[R, N], `pad_id` behind the end.
      lengths: i32[R], tokens up to and including the first stop token.
      logprobs: f32[R, N], under the distribution drawn from; 0 behind the end.
      stopped: bool[R], whether a stop token ended it; else it was cut off.
    """

    tokens: Array
    lengths: Array
    logprobs: Array
    stopped: Array


def generate(
    model: Qwen2_5_VL,
    variables: dict[str, Any],
    prompts: Prompts,
    keys: Array,
    sampling: TokenSampling,
    *,
    stop_ids: tuple[int, ...],
    pad_id: int,
    max_new_tokens: int,
    limit: Array | int | None = None,
    active: Array | None = None,
) -> Generation:
    """Writes an answer to every prompt. To be called inside `jit`.

    Args:
      model: the encoder.
      variables: {"params": ..., and maybe "lora": ...}.
      prompts: the batch.
      keys: R PRNG keys; G = R / B samples are drawn for each prompt, side by side.
      sampling: how tokens are drawn.
      stop_ids: tokens that end an answer.
      pad_id: what stands behind the end.
      max_new_tokens: N, the size of the buffers; a new value compiles anew.
      limit: i32[], stop after this many tokens, at most N; None: N.
      active: bool[R], rows that are no padding of the batch; others are finished from the start.

    Raises:
      ValueError: if the keys are not a multiple of the prompts.
    """
    batch, length = prompts.tokens.shape
    rows = keys.shape[0]
    if rows % batch:
        raise ValueError(f"{rows} keys for {batch} prompts, wanted a multiple: one key per sample")
    group = rows // batch
    limit = jnp.minimum(max_new_tokens if limit is None else limit, max_new_tokens)
    logits, cache = prefill(model, variables, prompts, length + max_new_tokens)
    logits, valid, asked, next_position = (
        jnp.repeat(x, group, axis=0) for x in (logits, prompts.valid, prompts.tokens, prompts.next_position)
    )
    caches = tuple(
        tuple(constrain(jnp.repeat(x, group, axis=0), "batch", None, "act_heads", None) for x in pair)
        for pair in decoding.split_cache(cache)
    )
    decoder = decoding.unstack(variables, model.config.text.depth)
    state = _blank(rows, max_new_tokens, pad_id, active) | {"caches": caches}
    if sampling.use_penalty:
        state["seen"] = jnp.zeros(logits.shape, bool).at[jnp.arange(rows)[:, None], asked].max(valid)
    visible = jnp.concatenate([valid, jnp.ones((rows, max_new_tokens), bool)], axis=1)
    slots = jnp.arange(length + max_new_tokens)
    stops = jnp.asarray(stop_ids, jnp.int32)

    def draw(state: dict, logits: Array) -> dict:
        fresh = jax.vmap(lambda key: jax.random.fold_in(key, state["step"]))(keys)
        drawn, density = choose(logits, fresh, sampling, state.get("seen"))
        return _record(state, drawn, density, stops, pad_id)

    def proceed(state: dict) -> Array:
        return (state["step"] < limit) & ~state["done"].all()

    def advance(state: dict) -> dict:
        fed = state["step"] - 1  # number of the token that goes in
        seen_slots = visible & (slots <= length + fed)
        logits, caches = decoding.decode_step(
            model, decoder, state["caches"], state["token"], next_position + fed, length + fed, seen_slots
        )
        return draw(state | {"caches": caches}, logits)

    state = jax.lax.while_loop(proceed, advance, draw(state, logits))
    return Generation(*(state[name] for name in ("tokens", "lengths", "logprobs", "stopped")))


def _blank(rows: int, size: int, pad_id: int, active: Array | None) -> dict[str, Any]:
    """What is known before the first token."""
    return {
        "step": jnp.int32(0),
        "token": jnp.full((rows,), pad_id, jnp.int32),
        "tokens": jnp.full((rows, size), pad_id, jnp.int32),
        "logprobs": jnp.zeros((rows, size), jnp.float32),
        "lengths": jnp.zeros((rows,), jnp.int32),
        "stopped": jnp.zeros((rows,), bool),
        "done": jnp.zeros((rows,), bool) if active is None else ~active,
    }


def _record(state: dict[str, Any], drawn: Array, density: Array, stops: Array, pad_id: int) -> dict[str, Any]:
    """Writes token number `step` of every row down; rows that are done get padding."""
    step, done = state["step"], state["done"]
    drawn, density = jnp.where(done, pad_id, drawn), jnp.where(done, 0.0, density)
    ended = (drawn[:, None] == stops).any(axis=1) & ~done
    if "seen" in state:
        state = state | {"seen": state["seen"].at[jnp.arange(len(drawn)), drawn].set(True)}
    return state | {
        "step": step + 1,
        "token": drawn,
        "tokens": state["tokens"].at[:, step].set(drawn),
        "logprobs": state["logprobs"].at[:, step].set(density),
        "lengths": state["lengths"] + ~done,
        "stopped": state["stopped"] | ended,
        "done": done | ended,
    }


def prefill(model: Qwen2_5_VL, variables: dict[str, Any], prompts: Prompts, slots: int) -> tuple[Array, Any]:
    """Reads the prompts: f32[B, V] logits of the first new token, and a cache of `slots` slots that holds them."""
    features = None
    if prompts.images is not None:
        features = model.apply(variables, prompts.images, method="encode_images")
    embeddings = model.apply(variables, prompts.tokens, features, prompts.image_index, method="embed")
    cache = empty_cache(model.config.text, prompts.tokens.shape[0], slots, model.runtime.dtype)
    segments = prompts.valid.astype(jnp.int32)
    hidden, cache = model.apply(variables, embeddings, prompts.positions, segments, cache, 0, method="hidden_states")
    last = jnp.sum(segments, axis=1) - 1
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    return model.apply(variables, hidden, method="logits")[:, 0], cache
