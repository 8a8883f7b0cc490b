"""From logits to a token and its log-probability: penalty, temperature, top-k, top-p, greedy.

The order and the formulas are those of transformers' logits processors: repetition penalty, temperature, top-k, top-p.

Letters: B rows, V vocabulary.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_NEVER = -1e4  # exp of it is 0 in float32


@flax.struct.dataclass
class TokenSampling:
    """How tokens are drawn. Which filters exist is static; their strengths are arrays, so changing them costs nothing.

    Attributes:
      temperature: f32[], unused when greedy.
      top_p: f32[], in (0, 1].
      repetition_penalty: f32[], 1 for none; above 1 makes tokens seen before less likely.
      greedy: take the likeliest token.
      top_k: keep this many tokens; 0 keeps all.
      use_top_p, use_penalty: whether those filters are compiled in.
      allowed: bool[V], the tokens that there are; None: all.
    """

    temperature: Array
    top_p: Array
    repetition_penalty: Array
    greedy: bool = flax.struct.field(pytree_node=False)
    top_k: int = flax.struct.field(pytree_node=False)
    use_top_p: bool = flax.struct.field(pytree_node=False)
    use_penalty: bool = flax.struct.field(pytree_node=False)
    allowed: Array | None = None


def token_sampling(
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    allowed: Array | None = None,
) -> TokenSampling:
    """Checks and packs the settings; temperature 0 is greedy, `allowed` as `TokenSampling` has it.

    Raises:
      ValueError: on a value outside its range; names it.
    """
    if not (temperature == 0 or 1e-6 <= temperature < math.inf):  # less is not a number when something is divided by it
        raise ValueError(f"temperature is {temperature}, wanted 0 (greedy) or more, at least 1e-6")
    if not 1e-6 <= top_p <= 1:
        raise ValueError(f"top_p is {top_p}, wanted more than 0 and at most 1")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, wanted 0 (all tokens) or more")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty is {repetition_penalty}, wanted a positive number (1 for none)")
    return TokenSampling(
        temperature=np.float32(temperature),
        top_p=np.float32(top_p),
        repetition_penalty=np.float32(repetition_penalty),
        greedy=temperature == 0,
        top_k=top_k,
        use_top_p=top_p < 1,
        use_penalty=repetition_penalty != 1,
        allowed=None if allowed is None else jnp.asarray(allowed),
    )


def among(logits: Array, allowed: Array | None) -> Array:
    """Logits [..., V] that leave no probability to tokens that are not allowed (bool[V]; None: all are).

    They are finite, so that entropies and differences of what has no probability are numbers.
    """
    return logits if allowed is None else jnp.where(allowed, logits, _NEVER)


def penalise(logits: Array, seen: Array, penalty: Array) -> Array:
    """Repetition penalty (Keskar et al. 2019, arXiv 1909.05858): divides positive logits of seen tokens, multiplies
    negative ones.

    Args:
      logits: f32[B, V].
      seen: bool[B, V], the tokens of prompt and answer so far.
      penalty: f32[].
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sampling_logits(logits: Array, sampling: TokenSampling, seen: Array | None = None) -> Array:
    """The logits of the distribution that tokens are drawn from: f32[B, V], -inf where a token is cut off."""
    logits = among(logits.astype(jnp.float32), sampling.allowed)
    if sampling.use_penalty:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.greedy:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.use_top_p:
        logits = _nucleus(logits, sampling.top_p)
    return logits


def _nucleus(logits: Array, top_p: Array) -> Array:
    """Keeps the likeliest tokens whose probabilities before them sum to less than `top_p` (at least one)."""
    order = jnp.argsort(-logits, axis=-1)
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    keep_sorted = jnp.cumsum(probs, axis=-1) - probs < top_p
    keep = jnp.put_along_axis(jnp.zeros_like(keep_sorted), order, keep_sorted, axis=-1, inplace=False)
    return jnp.where(keep, logits, -jnp.inf)


def choose(logits: Array, keys: Array, sampling: TokenSampling, seen: Array | None = None) -> tuple[Array, Array]:
    """Draws one token per row.

    Args:
      logits: [B, V].
      keys: a PRNG key per row, so that a row does not depend on its batch.
      sampling: the settings.
      seen: bool[B, V], needed where a repetition penalty is used.

    Returns:
      (i32[B] tokens, f32[B] their log-probabilities under the distribution drawn from; when greedy, under the
      distribution at temperature 1).
    """
    logits = sampling_logits(logits, sampling, seen)
    tokens = jnp.argmax(logits, axis=-1) if sampling.greedy else jax.vmap(jax.random.categorical)(keys, logits)
    tokens = tokens.astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)
