"""Logical axis names -> mesh axes, for parameters and activations alike.

A model file says what an axis *is* ("embed", "heads"); the rules here, or a config's, say where it goes. A dimension
that a mesh axis does not divide stays whole on that axis, so the same rules serve every size of a model.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Names = Sequence[str | None]
Rules = Mapping[str, Sequence[str]]

# Logical axis -> mesh axes, tried in this order, each used at most once per array.
DEFAULT_RULES: Rules = {
    # activations
    "batch": ("data", "fsdp"),
    "images": ("data", "fsdp", "tensor", "sequence"),  # of convolutions, which split nothing else
    "length": ("sequence",),
    "act_heads": ("tensor",),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
    # parameters
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor", "fsdp"),
    "channels": ("fsdp",),
    "layers": (),
}

COPIES = "data"  # the mesh axis over which weights are copied

_one_copy: contextvars.ContextVar[bool] = contextvars.ContextVar("on_one_copy", default=False)
_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("logical_axis_rules", default=DEFAULT_RULES)


@contextlib.contextmanager
def axis_rules(rules: Rules) -> Iterator[None]:
    """Makes `rules` the ones that `constrain` and `shardings` use, inside the `with` block."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


@contextlib.contextmanager
def on_one_copy() -> Iterator[None]:
    """What is traced in the `with` block works on one copy of the weights, see `uae_jax.parallel.replicas`."""
    token = _one_copy.set(True)
    try:
        yield
    finally:
        _one_copy.reset(token)


def partition_spec(shape: Sequence[int], names: Names, mesh: Any, rules: Rules | None = None) -> PartitionSpec:
    """Lays one array's named axes onto the mesh.

    Args:
      shape: the array's shape.
      names: a logical name or None for each axis.
      mesh: a `Mesh` or `AbstractMesh`. Inside `on_one_copy` its axis "data" is passed over.
      rules: logical name -> mesh axes; the context's when None.

    Raises:
      ValueError: if the ranks differ or a name has no rule.
    """
    rules = _rules.get() if rules is None else rules
    if len(shape) != len(names):
        raise ValueError(
            f"array of shape {tuple(shape)} has {len(names)} axis names {tuple(names)}, wanted {len(shape)}"
        )
    used: set[str] = set()
    spec: list[tuple[str, ...] | None] = []
    for size, name in zip(shape, names, strict=True):
        if name is not None and name not in rules:
            raise ValueError(f"logical axis {name!r} has no rule; known axes: {', '.join(rules)}")
        taken: list[str] = []
        for axis in rules[name] if name is not None else ():
            parts = axis_size(mesh, axis)
            if parts > 1 and axis not in used and size % parts == 0:
                taken.append(axis)
                used.add(axis)
                size //= parts
        spec.append(tuple(taken) or None)
    return PartitionSpec(*spec)


def parts(name: str, mesh: Any) -> int:
    """Into how many parts a logical axis is split where it divides."""
    return math.prod(axis_size(mesh, axis) for axis in _rules.get()[name])


def shards(size: int, name: str, mesh: Any) -> int:
    """Into how many parts a logical axis of this size is split: fewer than `parts` where those do not divide it."""
    (axes,) = partition_spec((size,), (name,), mesh)
    return math.prod(axis_size(mesh, axis) for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def axis_size(mesh: Any, axis: str) -> int:
    """How many parts a mesh axis has; one inside `on_one_copy`, if it is that of the copies."""
    return 1 if axis == COPIES and _one_copy.get() else mesh.shape.get(axis, 1)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to keep an activation split by its logical axes; does nothing outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, names, mesh))


def largest(x: jax.Array) -> jax.Array:
    """The largest number of an array with a row for each sample, []: of all copies' rows, where each has its own.

    What decides for a whole program must be one number: of a choice for each copy, all would do both.
    """
    return jax.lax.pmax(x.max(), COPIES) if _one_copy.get() else x.max()


def gathered(tree: Any, axes: Any) -> Any:
    """Asks the compiler to make parameters whole over the axis "fsdp" here, values unchanged; of a tree of axis names.

    What a loop uses of the result has been sent before it begins, and not in every round. As `constrain`, it does
    nothing outside `jax.set_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    rules = {name: tuple(axis for axis in places if axis != "fsdp") for name, places in _rules.get().items()}
    return jax.tree.map(
        lambda leaf, names: jax.lax.with_sharding_constraint(leaf, partition_spec(leaf.shape, names, mesh, rules)),
        tree,
        axes,
    )


class LogicalAxes:
    """The logical axes of every parameter of one architecture: a table of (pattern, names).

    A pattern is a regular expression that must match a parameter's whole path ("layers/attn/q/kernel"). Names are
    written for a single layer; a path with a component that begins with "layers" gets a leading "layers" axis.
    """

    def __init__(self, *rules: tuple[str, Names]):
        self.rules = tuple((re.compile(pattern), tuple(names)) for pattern, names in rules)

    def of(self, path: str) -> tuple[str | None, ...]:
        """Names the axes of the parameter at `path`.

        Raises:
          ValueError: unless exactly one pattern matches.
        """
        found = [(pattern.pattern, names) for pattern, names in self.rules if pattern.fullmatch(path)]
        if len(found) != 1:
            shown = ", ".join(pattern for pattern, _ in found) or "none"
            raise ValueError(f"parameter {path} matches {len(found)} sharding patterns ({shown}), wanted exactly one")
        return (("layers",) if is_stacked(path) else ()) + found[0][1]

    def tree(self, params: Any) -> Any:
        """Returns a tree like `params` with a tuple of axis names in place of each array."""
        flat = traverse_util.flatten_dict(params, sep="/")
        return traverse_util.unflatten_dict({path: self.of(path) for path in flat}, sep="/")


def is_stacked(path: str) -> bool:
    """Whether the parameter at `path` has a leading layer axis (see `uae_jax.models.runtime.scan_layers`)."""
    return any(part.startswith("layers") for part in path.split("/"))


def shardings(params: Any, axes: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """Gives every leaf of `params` (arrays or `ShapeDtypeStruct`) a `NamedSharding`, from a tree of axis names."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, partition_spec(leaf.shape, names, mesh, rules)), params, axes
    )
