"""Log-probabilities of given tokens, without ever holding the logits of a long text.

Letters: B rows or prompts, G answers of each prompt, R = B G rows, T tokens, N tokens of an answer, D width,
V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uae_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.sampling import conditioning, tokens

Array = jax.Array


class TokenScores(NamedTuple):
    """What a model thinks of given tokens.

    Attributes:
      logprob: f32[B, T].
      best: bool[B, T], whether it is the likeliest token.
      entropy: f32[B, T], of the distribution that the token is one of, nats.
    """

    logprob: Array
    best: Array
    entropy: Array


def token_scores(
    model: Qwen2_5_VL,
    variables: dict[str, Any],
    hidden: Array,
    targets: Array,
    chunk: int = 0,
    temperature: Array | float = 1.0,
    allowed: Array | None = None,
) -> TokenScores:
    """Scores one token per hidden state.

    Args:
      model: the module, whose head is used.
      variables: {"params": ..., and maybe "lora": ...}.
      hidden: [B, T, D], final hidden states.
      targets: i32[B, T], the token that should follow each.
      chunk: how many positions' logits exist at a time, forwards and backwards; 0 for all.
      temperature: that tokens were drawn at; logits are divided by it, as `sampling.tokens` does.
      allowed: bool[V], the tokens that they were drawn from; None: all.

    Returns:
      the scores. Softmax in float32.
    """

    def score(states: Array, wanted: Array) -> TokenScores:
        logits = model.apply(variables, states, method="logits").astype(jnp.float32)
        logits = tokens.among(logits, allowed) / temperature
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        chosen = jnp.take_along_axis(logprobs, wanted[..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return TokenScores(chosen, jnp.argmax(logits, axis=-1) == wanted, entropy)

    length = targets.shape[1]
    count, chunk = chunks(length, chunk)
    if count == 1:
        return score(hidden, targets)

    def parts(x: Array) -> Array:  # [B, T, ...] -> [count, B, chunk, ...], zeros behind the last
        x = jnp.pad(x, [(0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    scored = jax.lax.map(jax.checkpoint(lambda pair: score(*pair)), (parts(hidden), parts(targets)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length], scored)


def chunks(length: int, most: int) -> tuple[int, int]:
    """How positions are cut up: (parts, positions of each), as even as can be; one part if `most` is 0.

    513 positions by 256 are three parts of 171.
    """
    count = -(-length // most) if most else 1
    return count, -(-length // count)


def answer_scores(
    model: Qwen2_5_VL,
    variables: dict[str, Any],
    prompts: Prompts,
    answers: Array,
    lengths: Array,
    chunk: int = 0,
    temperature: Array | float = 1.0,
    allowed: Array | None = None,
) -> TokenScores:
    """Scores answers to prompts in one pass, images in context: [R, N]; behind an answer's end they mean nothing.

    Args:
      model, variables, chunk, temperature, allowed: as `token_scores`.
      prompts: B of them.
      answers: i32[R, N]; G = R / B rows for each prompt, side by side.
      lengths: i32[R], tokens of each answer, the one that ends it counted.
    """
    asked, told = conditioning.hidden_with_answers(model, variables, prompts, answers, lengths)
    before = jnp.concatenate([asked, told[:, :-1]], axis=1)  # token n is foretold by the state before it
    return token_scores(model, variables, before, answers, chunk, temperature, allowed)
