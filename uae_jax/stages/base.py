"""What a training stage supplies; the one loop (`uae_jax.training`) owns all the rest.

A stage is a set of pure functions over three trees: `params`, which the optimiser trains; `state`, which the stage
itself carries from step to step (a teacher, a running mean); and `frozen`, which nobody changes. The loop makes one
compiled step of them: prepare -> loss and gradient, accumulated -> update -> after_update.
"""

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh

from uae_jax.averages import Mean, divided
from uae_jax.data.config import DataConfig
from uae_jax.data.records import Sample

Array = jax.Array
Tree = Any


@dataclasses.dataclass
class Parts:
    """What a stage starts from, on its mesh.

    Attributes:
      params: trained, float32.
      frozen: read only, in any dtype.
      state: of the stage's own, updated by `after_update` and by what `loss` returns.
      params_axes, state_axes: trees of logical axis names, as `LogicalAxes.tree` makes them; None replicates.
      decayed: tree of bool like `params`: what weight decay applies to; None decays all matrices.
      trained: tree of bool like `params`: False for what rides along but must not change (buffers); None trains all.
    """

    params: Tree
    frozen: Tree = dataclasses.field(default_factory=dict)
    state: Tree = dataclasses.field(default_factory=dict)
    params_axes: Tree | None = None
    state_axes: Tree | None = None
    decayed: Tree | None = None
    trained: Tree | None = None


@struct.dataclass
class Aux:
    """What a loss tells beside its value.

    Attributes:
      metrics: name -> f32[], averaged over micro-batches, copies of the weights and the logging interval; or a `Mean`,
        where not all parts have as much to average, so that it is the same however a batch is split.
      state: the stage's state after this batch; None leaves it.
      per_example: f32[B], the loss of each example where it has one, so that a bad one can be named.
    """

    metrics: dict[str, Array | Mean]
    state: Tree | None = None
    per_example: Array | None = None


@dataclasses.dataclass
class Picture:
    """A grid to look at: rows of images, and a text for each row.

    Attributes:
      name: becomes the file's name.
      columns: one heading per column.
      rows: per row, one u8[H, W, 3] per column (sizes may differ).
      texts: per row, printed below it; () for none.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[np.ndarray]]
    texts: Sequence[str] = ()


class Stage(abc.ABC):
    """One way of training. Subclasses name the dataclass of their settings in `Settings`.

    The constructor takes `(settings, seed)` and checks the settings without allocating anything.

    Attributes:
      needs_captions: whether a sample must have one.
      separable: whether the loss is the mean of what each row of a batch gives by itself: it compares no rows, leaves
        the stage's state alone, and draws from its rows (see `uae_jax.stages.draws`) and not from its key. Gradients of
        such a loss are summed up on each copy of the weights, and sent once per update.
      updates: of the optimiser per batch, each on a part of what `prepare` made of it.
      accumulate: micro-batches of each update; set by who makes the step.
    """

    Settings: ClassVar[type]
    needs_captions: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    updates: int = 1
    accumulate: int = 1

    def __init__(self, settings: Any, seed: int = 0):
        self.settings = settings
        self.seed = seed

    def look_for_models(self) -> None:
        """Raises what `load` would of models that are not there; reads no weights. Comes before anything is built."""
        return

    def look_at_data(self, data: Sequence[DataConfig]) -> None:
        """Keeps what data says of itself that `load` is to hold against the models. Comes before anything is built."""
        return

    def check_steps(self, steps: int) -> None:
        """Raises `ValueError` where settings do not suit a run of so many steps. Comes before anything is built."""
        return

    @abc.abstractmethod
    def load(self, mesh: Mesh) -> Parts:
        """Loads or initialises everything, straight into its shards. Called once, before any other method below."""

    @abc.abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Tree:
        """Makes a batch on the host: a tree of arrays, the leading axis of each of which counts the samples.

        Pads to a few shapes only, and where there are several processes, each of which sees its own samples, to one.
        Runs in a thread beside the steps.
        """

    @abc.abstractmethod
    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        """The loss of one micro-batch, f32[], differentiable in `params`. Pure."""

    def prepare(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Tree, dict]:
        """Work on the whole batch before gradients, in the same program: a rollout. Returns (batch, metrics). Pure."""
        return batch, {}

    def after_update(self, params: Tree, state: Tree, step: Array) -> Tree:
        """The stage's state after an update that gave `params`; `step` counts from 0. Pure."""
        return state

    def evaluate(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> dict[str, Array]:
        """Metrics of one held-out batch, name -> f32[]; by default those of the loss. Pure.

        Arrays with a row for each sample may be among them, for `judge` and `drawn`.
        """
        value, aux = self.loss(params, state, frozen, batch, key)
        return {"loss": value, **divided(aux.metrics)}

    def judge(self, outputs: dict[str, np.ndarray], samples: Sequence[Sample]) -> dict[str, float]:
        """Further metrics, computed on the host from the arrays that `evaluate` returned for a batch."""
        return {}

    def drawn(self, outputs: dict[str, np.ndarray], samples: Sequence[Sample]) -> list[Picture]:
        """What to look at, made of the arrays that `evaluate` returned for the first batch."""
        return []

    def pictures(
        self, params: Tree, state: Tree, frozen: Tree, batch: Tree, samples: Sequence[Sample]
    ) -> list[Picture]:
        """What to look at after an evaluation, made of its first batch. Runs on the host, not jitted as a whole.

        Every process has all samples of the batch, and calls this; so do what it asks of devices alike on all of them,
        and fetch by `global_arrays.to_host`.
        """
        return []

    @abc.abstractmethod
    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        """Writes the stage's result as a model folder that others load. All processes call it; the first one writes."""
