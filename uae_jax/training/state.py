"""Everything that a run carries from step to step, as one tree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uae_jax.parallel import sharding
from uae_jax.stages.base import Parts

Tree = Any
Array = jax.Array


@struct.dataclass
class TrainState:
    """A run between two steps.

    Attributes:
      step: i32[], steps done, whether or not they changed anything.
      params: what is trained, float32.
      moments: of the optimiser.
      ema: average of `params`; None where none is kept.
      stage: the stage's own.
      key: PRNG key of the run; step i uses `fold_in(key, i)`.
      nonfinite_in_a_row: i32[], steps without an update up to now.
    """

    step: Array
    params: Tree
    moments: Tree
    ema: Tree | None
    stage: Tree
    key: Array
    nonfinite_in_a_row: Array


def make_state(parts: Parts, optimiser: optax.GradientTransformation, seed: int, with_ema: bool, mesh: Mesh) -> Any:
    """The state before the first step, every part of it in its shards.

    `parts.params` become part of it, and are gone once a step has taken them. The stage's own state is copied: two
    leaves of it may be one array, which no step could take twice.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    params = _placed(parts.params, parts.params_axes, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, params)
    moments = jax.jit(optimiser.init, out_shardings=_like_params(optimiser, params, placed, whole))(params)
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), whole),
        params=params,
        moments=moments,
        ema=_copied(params) if with_ema else None,
        stage=_copied(_placed(parts.state, parts.state_axes, mesh)),
        key=jax.device_put(jax.random.key(seed), whole),
        nonfinite_in_a_row=jax.device_put(jnp.zeros((), jnp.int32), whole),
    )


def planned_state(parts: Parts, optimiser: optax.GradientTransformation, with_ema: bool, mesh: Any) -> TrainState:
    """What `make_state` would make, as `ShapeDtypeStruct` with shardings: a checkpoint is restored into it.

    Args:
      parts: need hold no more than shapes and dtypes either.
      mesh: a `Mesh` or `AbstractMesh`.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def on(tree: Tree, places: Tree) -> Tree:
        return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, places)

    def places_of(tree: Tree, axes: Tree | None) -> Tree:
        return jax.tree.map(lambda _: whole, tree) if axes is None else sharding.shardings(tree, axes, mesh)

    placed = places_of(parts.params, parts.params_axes)
    params = on(parts.params, placed)
    moments = jax.eval_shape(optimiser.init, params)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return TrainState(
        step=number,
        params=params,
        moments=on(moments, _like_params(optimiser, params, placed, whole)),
        ema=params if with_ema else None,
        stage=on(parts.state, places_of(parts.state, parts.state_axes)),
        key=jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole),
        nonfinite_in_a_row=number,
    )


def _placed(tree: Tree, axes: Tree | None, mesh: Mesh) -> Tree:
    """Puts a tree where its logical axes say; without axes, on every device alike."""
    if axes is None:
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    return jax.device_put(tree, sharding.shardings(tree, axes, mesh))


def _copied(tree: Tree) -> Tree:
    return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=jax.tree.map(lambda x: x.sharding, tree))(tree)


def _like_params(optimiser: optax.GradientTransformation, params: Tree, placed: Tree, whole: NamedSharding) -> Tree:
    """Where the optimiser's state goes: what is like a parameter lies with it, counters lie everywhere."""
    shapes = jax.eval_shape(optimiser.init, params)
    return optax.tree_map_params(
        optimiser,
        lambda leaf, to: leaf if _is_masked(leaf) else to,
        shapes,
        placed,
        transform_non_params=lambda _: whole,
        is_leaf=_is_masked,
    )


def _is_masked(node: Any) -> bool:
    """Whether a part of the optimiser left this parameter to another part."""
    return isinstance(node, optax.MaskedNode)
