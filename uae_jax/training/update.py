"""One compiled step for every stage: prepare, gradients of micro-batches, one guarded update.

    step(state, frozen, batch) -> (state, metrics)

Letters: B samples of a batch, A micro-batches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from uae_jax.averages import divided
from uae_jax.parallel import replicas, sharding
from uae_jax.stages.base import Aux, Stage
from uae_jax.training import profiling
from uae_jax.training.config import EMAConfig
from uae_jax.training.state import TrainState

Tree = Any
Array = jax.Array
Step = Callable[[TrainState, Tree, Tree], tuple[TrainState, dict[str, Array]]]


def make_step(
    stage: Stage,
    optimiser: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema: EMAConfig = EMAConfig(),
    max_nonfinite: int = 10,
) -> Step:
    """Composes a stage and an optimiser into one pure step.

    A step whose loss or gradient is not finite changes nothing but the step's number (and so the noise of the next
    one) and the count of such steps in a row. Once that is `max_nonfinite`, no step changes anything any more: the
    loop, which reads metrics now and then only, ends the run as of that step. Of several updates in a step each is
    refused by itself; a step of which one was not refused has changed something.

    Args:
      stage: its functions.
      optimiser: of `make_optimiser`.
      accumulate: A; the gradient is the mean over micro-batches.
      ema: average of the parameters.
      max_nonfinite: see above.

    Returns:
      the step; its metrics are f32[], and two tell of trouble: "nonfinite" f32[], the share of its updates that were
      refused, 1 if the step changed nothing, and "bad_examples" bool[B], which samples had a loss that was no number
      (all False where the loss does not say).
    """

    stage.accumulate = accumulate

    def update(state: TrainState, frozen: Tree, batch: Tree, key: Array, number: Array) -> tuple[TrainState, dict]:
        with jax.named_scope(profiling.LOSS):
            loss, aux, grads = accumulated_gradients(stage, state.params, state.stage, frozen, batch, key, accumulate)
        norm = optax.tree.norm(grads)
        fine = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.nonfinite_in_a_row < max_nonfinite)
        with jax.named_scope(profiling.OPTIMISER):
            updated = _updated(stage, optimiser, ema, state, grads, aux, number)
        state = jax.tree.map(lambda new, old: _select(fine, new, old), updated, state)
        metrics = {"loss": loss, **divided(aux.metrics), "grad_norm": norm, "nonfinite": 1.0 - fine}
        return state, {**metrics, "bad_examples": ~jnp.isfinite(aux.per_example)}

    def step(state: TrainState, frozen: Tree, batch: Tree) -> tuple[TrainState, dict[str, Array]]:
        prepare_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        with jax.named_scope(profiling.PREPARE):
            batch, prepared = stage.prepare(state.params, state.stage, frozen, batch, prepare_key)
        if stage.updates == 1:
            state, metrics = update(state, frozen, batch, loss_key, state.step)
        else:
            state, metrics = _in_turn(update, stage.updates, state, frozen, batch, loss_key)
        bad = sharding.constrain(metrics.pop("bad_examples"), None)  # whole on every process, as the numbers are
        metrics = {name: value.astype(jnp.float32) for name, value in {**prepared, **metrics}.items()}
        in_a_row = jnp.where(metrics["nonfinite"] < 1, 0, state.nonfinite_in_a_row + 1)
        return state.replace(step=state.step + 1, nonfinite_in_a_row=in_a_row), {**metrics, "bad_examples": bad}

    return step


def _in_turn(
    update: Callable, updates: int, state: TrainState, frozen: Tree, batch: Tree, key: Array
) -> tuple[TrainState, dict[str, Array]]:
    """One update on each part of a batch; part u holds the samples u, u + U, u + 2U, ..., as micro-batches do.

    Metrics are means over the updates that were not refused (over all where all were) but for "nonfinite".
    """
    parts = jax.tree.map(lambda x: x.reshape(-1, updates, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(state: TrainState, item: Any) -> Any:
        part, part_key, u = item
        return update(state, frozen, part, part_key, state.step * updates + u)

    keys = jax.random.split(key, updates)
    state, metrics = jax.lax.scan(body, state, (parts, keys, jnp.arange(updates)))
    bad, refused = metrics.pop("bad_examples"), metrics.pop("nonfinite")
    counted = jnp.where(refused.all(), True, refused == 0)
    means = {name: value.mean(0, where=counted) for name, value in metrics.items()}
    return state, {**means, "nonfinite": refused.mean(0), "bad_examples": bad.swapaxes(0, 1).reshape(-1)}


def accumulated_gradients(
    stage: Stage, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array, accumulate: int = 1
) -> tuple[Array, Aux, Tree]:
    """Means over micro-batches of loss, metrics and gradient.

    Micro-batch a holds the samples a, a + A, a + 2A, ...: so a batch that is split over devices stays where it is. Of a
    separable stage each copy of the weights sums up its own samples, and the copies are averaged once, behind them all.

    Args:
      stage: whose loss it is.
      params, state, frozen, batch, key: as a loss takes them.
      accumulate: A.

    Returns:
      loss f32[]; aux, its `per_example` f32[B] in the order of the batch; the gradient, like `params`.
    """
    if not stage.separable:
        return _accumulated(stage, params, state, frozen, key, batch, accumulate)

    def own(whole: Tree, batch: Tree) -> tuple[Tree, Array]:
        loss, aux, grads = _accumulated(stage, *whole, batch, accumulate)
        return (loss, aux.metrics, grads), aux.per_example

    (loss, metrics, grads), per_example = replicas.on_each(own, (params, state, frozen, key), batch)
    return loss, Aux(metrics, state, per_example), grads


def _accumulated(
    stage: Stage, params: Tree, state: Tree, frozen: Tree, key: Array, batch: Tree, accumulate: int
) -> tuple[Array, Aux, Tree]:
    value_and_grad = jax.value_and_grad(stage.loss, has_aux=True)
    samples = jax.tree.leaves(batch)[0].shape[0]
    if accumulate == 1:
        (loss, aux), grads = value_and_grad(params, state, frozen, batch, key)
        return loss, _complete(aux, state, samples), grads
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(carry: Any, item: Any) -> Any:
        total, state = carry
        part, part_key = item
        (loss, aux), grads = value_and_grad(params, state, frozen, part, part_key)
        aux = _complete(aux, state, samples // accumulate)
        total = jax.tree.map(jnp.add, total, grads)
        return (total, aux.state), (loss, aux.metrics, aux.per_example)

    zeros = jax.tree.map(jnp.zeros_like, params)
    keys = jax.random.split(key, accumulate)
    (total, state), (losses, metrics, per_example) = jax.lax.scan(body, (zeros, state), (micro, keys))
    grads = jax.tree.map(lambda x: x / accumulate, total)
    mean = jax.tree.map(lambda x: x.mean(0), metrics)
    return losses.mean(), Aux(mean, state, per_example.swapaxes(0, 1).reshape(-1)), grads


def _complete(aux: Aux, stage_state: Tree, samples: int) -> Aux:
    """Fills in what a stage left out, so that every step has the same outputs."""
    unknown = jnp.zeros(samples, jnp.float32)
    return aux.replace(
        state=stage_state if aux.state is None else aux.state,
        per_example=unknown if aux.per_example is None else aux.per_example,
    )


def _updated(
    stage: Stage,
    optimiser: optax.GradientTransformation,
    ema: EMAConfig,
    state: TrainState,
    grads: Tree,
    aux: Aux,
    number: Array,
) -> TrainState:
    """The state after update `number`, from 0."""
    changes, moments = optimiser.update(grads, state.moments, state.params)
    params = optax.apply_updates(state.params, changes)
    return state.replace(
        params=params,
        moments=moments,
        ema=None if state.ema is None else averaged(state.ema, params, number, ema),
        stage=stage.after_update(params, aux.state, number),
    )


def averaged(average: Tree, params: Tree, step: Array, config: EMAConfig) -> Tree:
    """The EMA after `params` of update `step` (from 0): decay min(d, (1 + n) / (10 + n)) at its n-th own step."""
    count = (step // config.every).astype(jnp.float32)
    decay = jnp.minimum(config.decay, (1 + count) / (10 + count))
    decay = jnp.where(step % config.every == 0, decay, 1.0)
    return jax.tree.map(lambda a, p: a * decay + p * (1 - decay), average, params)


def _select(condition: Array, new: Array, old: Array) -> Array:
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        return old  # the run's key never changes
    return jnp.where(condition, new, old)
