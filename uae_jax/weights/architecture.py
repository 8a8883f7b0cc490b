"""What the package knows of one published architecture, gathered in one value."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from uae_jax.models.runtime import Runtime
from uae_jax.parallel.sharding import LogicalAxes
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import Entry

Tensors = Mapping[str, Tensor]


def _as_is(tensors: Tensors, config: Any) -> Tensors:
    del config
    return tensors


def _same_name(module: str) -> str:
    return module


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One published architecture.

    Attributes:
      name: its class name in the published `config.json` ("architectures" or "_class_name").
      config_class: our dataclass of sizes.
      module: (config, runtime) -> the linen module.
      example_inputs: config -> the smallest inputs that the module's `init` accepts, as `ShapeDtypeStruct`s.
      logical_axes: the axes of every parameter.
      config_from_json: published `config.json` -> config; raises `WeightsError` on what the module cannot do.
      config_to_json: the other direction; transformers or diffusers accept the result.
      table: config -> one entry per parameter.
      canonical: brings a checkpoint in any known key layout to the keys of the table, and drops buffers that are no
        parameters.
      file_stem: of the safetensors files.
      module_name: name of a module in the published keys -> its name in the PyTorch model in memory, where the two
        differ; adapters are stored under the latter.
    """

    name: str
    config_class: type
    module: Callable[[Any, Runtime], nn.Module]
    example_inputs: Callable[[Any], tuple[Any, ...]]
    logical_axes: LogicalAxes
    config_from_json: Callable[[dict], Any]
    config_to_json: Callable[[Any], dict]
    table: Callable[[Any], list[Entry]]
    file_stem: str
    canonical: Callable[[Tensors, Any], Tensors] = _as_is
    module_name: Callable[[str], str] = _same_name

    def abstract(self, config: Any, runtime: Runtime = Runtime()) -> Any:
        """The parameter tree as `ShapeDtypeStruct`: full size, no memory."""
        return jax.tree.map(lambda leaf: leaf, _abstract(self, config, runtime))  # the caller's own


@functools.cache
def _abstract(architecture: Architecture, config: Any, runtime: Runtime) -> Any:
    model = architecture.module(config, runtime)
    return jax.eval_shape(model.init, jax.random.key(0), *architecture.example_inputs(config))["params"]


@dataclasses.dataclass
class Pretrained:
    """A model's sizes and parameters.

    Attributes:
      architecture: what it is.
      config: an instance of `architecture.config_class`.
      params: nested dict of arrays.
    """

    architecture: Architecture
    config: Any
    params: Any
