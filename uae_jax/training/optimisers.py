"""AdamW or Muon, the schedule, clipping and masks, as one optax transformation."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import traverse_util

from uae_jax.parallel.sharding import is_stacked
from uae_jax.training.config import OptimiserConfig

Tree = Any

_MUON_MOMENTUM = 0.95
_MUON_RMS = (
    0.2  # of an update at rate 1, as Adam's usually is, so that both take the same rates (arXiv 2502.16982, 2.2)
)


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
    """Clipping, Adam or Muon, decoupled weight decay and the schedule.

    Args:
      config: rates.
      updates: of the whole run, for the schedule.
      decayed: tree of bool, what weight decay applies to; None takes `matrices`.
      trained: tree of bool; what is False gets no update and no moments. None trains all.
    """
    steps = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    steps.append(_direction(config))
    if config.weight_decay:
        steps.append(optax.add_decayed_weights(config.weight_decay, mask=matrices if decayed is None else decayed))
    steps.append(optax.scale_by_learning_rate(schedule(config, updates)))
    optimiser = optax.chain(*steps)
    if trained is None or all(jax.tree.leaves(trained)):
        return optimiser
    labels = jax.tree.map(lambda yes: "trained" if yes else "fixed", trained)
    return optax.multi_transform({"trained": optimiser, "fixed": optax.set_to_zero()}, labels)


def updates_made(moments: Tree) -> int:
    """How many updates the state of a `make_optimiser` has seen; its schedule counts no other, so none refused."""
    scheduled = optax.ScaleByScheduleState
    states = jax.tree.leaves(moments, is_leaf=lambda node: isinstance(node, scheduled))
    (count,) = [state.count for state in states if isinstance(state, scheduled)]
    return int(count)


def _direction(config: OptimiserConfig) -> optax.GradientTransformation:
    """Gradients to updates at rate 1."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.dtype(config.moments))
    if config.kind == "adamw":
        return adam
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=_MUON_MOMENTUM, mu_dtype=jnp.dtype(config.moments), weight_dimension_numbers=muon_axes
        ),
        optax.stateless(lambda updates, params: jax.tree.map(_even_rms, updates, muon_axes(updates))),
    )

    def label(path: tuple, _: Any) -> str:
        return "muon" if is_muons(_joined(path), config.muon_leaves_out) else "adam"

    def labels(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(label, params)  # optax asks about a placeholder, too: no path

    return optax.multi_transform({"muon": muon, "adam": optax.chain(adam, optax.scale(config.others_rate))}, labels)


def is_muons(path: str, left_out: tuple[str, ...]) -> bool:
    """Whether Muon moves the parameter at `path`: a kernel that no pattern of `left_out` is found in."""
    return path.rsplit("/", 1)[-1] == "kernel" and not any(re.search(pattern, path) for pattern in left_out)


def muon_axes(kernels: Tree) -> Tree:
    """What of each kernel is a matrix: a tree of `MuonDimensionNumbers`; all other axes count matrices.

    A kernel is [in, out], or [in, K, out] where a layer has K outputs side by side, or [height, width, in, out] of a
    convolution; a stack has a leading layer axis.
    """

    def of(path: tuple, kernel: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        first = int(is_stacked(_joined(path)))
        window = kernel.ndim - first - 1 if kernel.ndim - first == 4 else 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, first + window)), (kernel.ndim - 1,))

    return jax.tree_util.tree_map_with_path(of, kernels)


def _joined(path: tuple) -> str:
    return "/".join(str(key.key) for key in path)


def _even_rms(update: jax.Array, axes: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    """Gives every orthogonalised matrix the same root mean square, whatever its shape."""
    rows = 1
    for axis in axes.reduction_axis:
        rows *= update.shape[axis]
    return update * (_MUON_RMS * max(rows, update.shape[-1]) ** 0.5)


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
