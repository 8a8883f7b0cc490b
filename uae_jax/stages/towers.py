"""How a model takes part in a stage: which of its numbers are trained, and what becomes of it in the end.

A tower splits a model into two trees. `trainable` holds what the optimiser sees, in float32: some or all parameters,
or a LoRA adapter, or both. `frozen` holds the rest in the dtype of computation. `variables` puts them together for
`module.apply`; `reference` does so without what is being trained; `finished` gives the model to save.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from uae_jax.models import lora
from uae_jax.models.lora import LoRAConfig
from uae_jax.models.runtime import Runtime
from uae_jax.parallel import global_arrays, sharding
from uae_jax.weights import peft
from uae_jax.weights.architecture import Architecture, Pretrained
from uae_jax.weights.uae import Adapter

Tree = Any
Flat = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """What of a model is trained. Patterns are regular expressions that must match a whole path.

    Attributes:
      mode: "full", all parameters; "lora", an adapter; "frozen", nothing.
      rank, alpha, targets: of a new adapter, see `LoRAConfig`; only linear layers are ever adapted.
      existing: an adapter that the model comes with is, under "lora", trained on ("continue", with its own rank and
        layers), or merged into the weights, and a new one begun ("merge", so that the model without its adapter is
        the one before this stage), which takes float32: bfloat16 rounds most of what an adapter adds to a weight away.
        Under "full" it is always merged, into float32; under "frozen" it stays as it is, and applied.
      full: parameters that are trained directly beside an adapter, e.g. ("vision/.*",).
      frozen: parameters and layers that are left alone whatever the mode, e.g. ("vision/.*",).
      remat: what the backward pass keeps, see `Runtime`.
    """

    mode: Literal["frozen", "lora", "full"] = "full"
    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = (r".*",)
    existing: Literal["continue", "merge"] = "continue"
    full: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        if self.mode == "frozen" and self.full:
            raise ValueError(f"mode is 'frozen', but full names {', '.join(self.full)}; wanted mode 'lora' or none")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}, wanted at least 1")

    def trains(self, path: str) -> bool:
        """Whether the parameter at `path` is trained directly."""
        chosen = self.mode == "full" or _matches(self.full, path)
        return chosen and self.mode != "frozen" and not _matches(self.frozen, path)


def check_dtypes(configs: Mapping[str, TowerConfig], *dtypes: str) -> None:
    """Raises `ValueError` where a tower, by its name, would merge an adapter into weights that cannot hold it."""
    for name, config in configs.items():
        if config.mode == "lora" and config.existing == "merge" and any(dtype != "float32" for dtype in dtypes):
            raise ValueError(
                f"{name}.existing is 'merge' and weights are {' and '.join(dict.fromkeys(dtypes))}, which rounds what "
                "an adapter adds to them away; wanted 'continue', or float32"
            )


@dataclasses.dataclass(frozen=True)
class Tower:
    """A model in a stage; holds no arrays. Made by `start`.

    Attributes:
      architecture, config: of the model.
      module: to be applied to `variables`.
      lora: of the adapter, trained or not; None where there is none.
      axes: logical axes of the trainable tree.
      frozen_axes: of the frozen tree.
      continued: whether an adapter that the model came with is trained on.
    """

    architecture: Architecture
    config: Any
    module: Any
    lora: LoRAConfig | None
    axes: Tree
    frozen_axes: Tree
    continued: bool

    def variables(self, trainable: Tree, frozen: Tree) -> dict[str, Tree]:
        """What the module is applied to; differentiable in `trainable`."""
        params = _joined(frozen["params"], trainable.get("params", {}))
        adapter = trainable.get("lora", frozen.get("lora"))
        return {"params": params, **lora.collection(adapter, self.lora)}

    def reference(self, frozen: Tree) -> dict[str, Tree]:
        """The variables of the model that the stage started from.

        Raises:
          ValueError: if parameters are trained directly, for then nobody keeps it; or if an adapter is trained on and
            `start` was not asked to keep it.
        """
        if "params" in self.axes:
            raise ValueError(
                "parameters are trained directly, so there is no reference model; wanted mode 'lora' alone"
            )
        if "lora" not in self.axes:
            return self.variables({}, frozen)
        if self.continued and "reference" not in frozen:
            raise ValueError("the reference's adapter was not kept; start the tower with keep_reference=True")
        return {"params": frozen["params"], **lora.collection(frozen.get("reference"), self.lora)}

    def base(self, frozen: Tree) -> dict[str, Tree]:
        """The variables without any adapter.

        Raises:
          ValueError: if parameters are trained directly, for then there is no model without what was trained.
        """
        if "params" in self.axes:
            raise ValueError(
                "parameters are trained directly, so there is no base model; wanted mode 'lora' or 'frozen'"
            )
        return {"params": frozen["params"]}

    def finished(self, trainable: Tree, frozen: Tree, dtype: Any = None) -> tuple[Pretrained, Adapter | None]:
        """The model and its adapter, to be saved.

        Args:
          trainable, frozen: as `variables` takes them.
          dtype: of the parameters; None leaves each as it is, so that trained ones are float32. Adapters stay float32.
        """
        params = _joined(frozen["params"], trainable.get("params", {}))
        if dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        adapter = trainable.get("lora", frozen.get("lora"))
        model = Pretrained(self.architecture, self.config, params)
        return model, None if adapter is None else Adapter(self.lora, adapter)


def start(
    model: Pretrained,
    config: TowerConfig,
    adapter: Adapter | None = None,
    *,
    dtype: Any = jnp.float32,
    seed: int = 0,
    mesh: Mesh | None = None,
    buffers: Sequence[str] = (),
    keep_reference: bool = False,
) -> tuple[Tower, Tree, Tree]:
    """Makes a tower of a model.

    Args:
      model: parameters in any dtype; they may become part of the result, so drop it.
      config: what is trained.
      adapter: that the model comes with.
      dtype: of computation, and of what is frozen.
      seed: of a new adapter.
      mesh: everything lands in its shards there; None leaves it where it is.
      buffers: patterns of parameters that nobody trains, e.g. `sd3.BUFFERS`.
      keep_reference: keep a copy of an adapter that is trained on, for `Tower.reference`.

    Returns:
      (the tower, its trainable tree, its frozen tree). Either tree has only the parts that there are: "params", "lora".

    Raises:
      ValueError: if a pattern names nothing, or an adapter would be merged into 16 bits, see `check_dtypes`.
    """
    architecture = model.architecture
    dtype = jnp.dtype(dtype)
    axes = traverse_util.flatten_dict(architecture.logical_axes.tree(model.params), sep="/")
    params = model.params
    if adapter is not None and (config.mode == "full" or (config.mode == "lora" and config.existing == "merge")):
        check_dtypes({"tower": config}, str(dtype))
        params = jax.jit(_merged, static_argnums=2)(params, adapter.params, adapter.config)
        adapter = None
    flat = traverse_util.flatten_dict(_placed(params, _nested(axes), mesh), sep="/")
    _check_patterns(config, flat)
    direct = {path for path in flat if config.trains(path) and not _matches(buffers, path)}
    trainable: dict[str, Tree] = {}
    frozen: dict[str, Tree] = {"params": _nested({p: x.astype(dtype) for p, x in flat.items() if p not in direct})}
    trainable_axes: dict[str, Tree] = {}
    frozen_axes: dict[str, Tree] = {"params": _nested({path: axes[path] for path in flat if path not in direct})}
    if direct:
        trainable["params"] = _nested({path: flat[path].astype(jnp.float32) for path in direct})
        trainable_axes["params"] = _nested({path: axes[path] for path in direct})

    lora_config, continued = None, config.mode == "lora" and adapter is not None
    if config.mode == "lora" and adapter is None:
        lora_config = LoRAConfig(config.rank, config.alpha, config.targets)
        candidates = _adaptable(model, config, flat)
        fresh = lora.init(jax.random.key(seed), candidates, lora_config)
        lora_axes = lora.logical_axes(fresh, _nested(axes))
        trainable["lora"], trainable_axes["lora"] = _placed(fresh, lora_axes, mesh), lora_axes
    elif adapter is not None:
        lora_config = adapter.config
        lora_axes = lora.logical_axes(adapter.params, _nested(axes))
        placed = _placed(adapter.params, lora_axes, mesh)
        if continued:
            trainable["lora"] = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), placed)
            trainable_axes["lora"] = lora_axes
            if keep_reference:
                frozen_axes["reference"] = lora_axes
                frozen["reference"] = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), placed)
        else:
            frozen_axes["lora"] = lora_axes
            frozen["lora"] = jax.tree.map(lambda leaf: leaf.astype(dtype), placed)
    runtime = Runtime(dtype, jnp.dtype(jnp.float32), config.remat)
    module = architecture.module(model.config, runtime)
    tower = Tower(architecture, model.config, module, lora_config, trainable_axes, frozen_axes, continued)
    return tower, trainable, frozen


def _merged(params: Tree, adapter: Tree, config: LoRAConfig) -> Tree:
    """In float32, whatever the weights were kept in."""
    return lora.merge(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), adapter, config)


def _adaptable(model: Pretrained, config: TowerConfig, flat: Flat) -> Tree:
    """The kernels that a new adapter may be for: those that PEFT can store one of, less what is to stay as it is."""
    layers = set(peft.adaptable_layers(model.architecture, model.config))
    kernels = {path: leaf for path, leaf in flat.items() if path.removesuffix("/kernel") in layers}
    return _nested(
        {p: x for p, x in kernels.items() if not _matches(config.frozen, p) and not _matches(config.full, p)}
    )


def _check_patterns(config: TowerConfig, flat: Flat) -> None:
    for name, patterns in (("full", config.full), ("frozen", config.frozen)):
        for pattern in patterns:
            if not any(_matches((pattern,), path) for path in flat):
                raise ValueError(f"{name}: pattern {pattern!r} names no parameter; there are {', '.join(sorted(flat))}")


def _matches(patterns: Sequence[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def _placed(tree: Tree, axes: Tree, mesh: Mesh | None) -> Tree:
    return tree if mesh is None else jax.tree.map(global_arrays.put, tree, sharding.shardings(tree, axes, mesh))


def _joined(one: Tree, other: Tree) -> Tree:
    flat = traverse_util.flatten_dict(one, sep="/") | traverse_util.flatten_dict(other, sep="/")
    return _nested(flat)


def _nested(flat: dict[str, Any]) -> Tree:
    return traverse_util.unflatten_dict(flat, sep="/")
