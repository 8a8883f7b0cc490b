"""AdamW, its schedule, clipping and masks, as one optax transformation."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from uae_jax.parallel.sharding import is_stacked
from uae_jax.training.config import OptimiserConfig

Tree = Any


def schedule(config: OptimiserConfig, updates: int) -> optax.Schedule:
    """The learning rate of update 0, 1, ...: a linear rise from 0 over `warmup`, then the named curve to the end.

    Args:
      config: names the curve.
      updates: in all, the warm-up included.
    """
    top, end = config.learning_rate, config.learning_rate * config.final_fraction
    rest = max(updates - config.warmup, 1)
    curves = {
        "constant": optax.constant_schedule(top),
        "cosine": optax.cosine_decay_schedule(top, rest, alpha=config.final_fraction),
        "linear": optax.linear_schedule(top, end, rest),
    }
    curve = curves[config.schedule]
    if config.warmup == 0:
        return curve
    # From one step's worth rather than from zero: an update that changes nothing is wasted.
    rise = optax.linear_schedule(top / config.warmup, top, config.warmup - 1 or 1)
    return optax.join_schedules([rise, curve], [config.warmup])


def make_optimiser(
    config: OptimiserConfig, updates: int, decayed: Tree | None = None, trained: Tree | None = None
) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled weight decay and the schedule.

    Args:
      config: rates.
      updates: of the whole run, for the schedule.
      decayed: tree of bool, what weight decay applies to; None takes `matrices`.
      trained: tree of bool; what is False gets no update and no moments. None trains all.
    """
    steps = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    steps.append(optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.dtype(config.moments)))
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=matrices if decayed is None else decayed))
    steps.append(optax.scale_by_learning_rate(schedule(config, updates)))
    optimiser = optax.chain(*steps)
    if trained is None or all(jax.tree.leaves(trained)):
        return optimiser
    labels = jax.tree.map(lambda yes: "trained" if yes else "fixed", trained)
    return optax.multi_transform({"trained": optimiser, "fixed": optax.set_to_zero()}, labels)


def matrices(params: Tree) -> Tree:
    """What weight decay usually applies to: kernels; not norms, biases, tokens, tables or scales.

    A stack's leading layer axis does not make a vector a matrix.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    result = {
        path: path.rsplit("/", 1)[-1] in ("kernel", "a", "b") and leaf.ndim - is_stacked(path) >= 2
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(result, sep="/")
