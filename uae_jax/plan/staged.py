"""A stage as it would be on its mesh, by shapes: its state, what is frozen, one batch. Nothing is allocated."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from uae_jax.data.records import Sample
from uae_jax.data.scenes.regions import SEPARATOR
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import abstract_mesh, use_mesh
from uae_jax.plan.stand_ins import StandIns
from uae_jax.stages import questions, registry
from uae_jax.stages.base import Parts, Stage
from uae_jax.stages.pretrain_settings import CONTEXT, LATENTS
from uae_jax.stages.towers import Tower
from uae_jax.training import loop
from uae_jax.training.config import Experiment, MeshConfig
from uae_jax.training.optimisers import make_optimiser
from uae_jax.training.state import TrainState, planned_state
from uae_jax.training.update import make_step
from uae_jax.weights import autoencoder_kl, shapes_only
from uae_jax.weights.architecture import Architecture

Tree = Any
_COLLATED = 2  # samples that a batch is made of; every array of it counts samples in its first axis


@dataclasses.dataclass
class Staged:
    """A loaded stage without numbers; every leaf is a `ShapeDtypeStruct`.

    Attributes:
      experiment: what was asked for.
      stage: loaded; holds no numbers either, so it is good for tracing alone.
      mesh: sizes of the axes.
      parts: what is trained and what is frozen, with the axes of both.
      frozen_axes: logical axes of `parts.frozen`.
      state: of the training loop.
      batch: of one step, all devices together.
    """

    experiment: Experiment
    stage: Stage
    mesh: AbstractMesh
    parts: Parts
    frozen_axes: Tree
    state: TrainState
    batch: Tree

    def placed(self, mesh: Mesh | AbstractMesh) -> tuple[TrainState, Tree, Tree]:
        """(state, frozen, batch) with their shardings on a mesh of the same sizes."""
        state = planned_state(self.parts, self._optimiser(), self.experiment.ema.decay > 0, mesh)
        places = sharding.shardings(self.parts.frozen, self.frozen_axes, mesh)
        return state, jax.tree.map(_on, self.parts.frozen, places), jax.tree.map(_rows(mesh), self.batch)

    def on(self, chips: int, mesh: MeshConfig, batch_size: int) -> "Staged":
        """The same stage on other chips; nothing is loaded again, and this one is not to be used any more.

        Raises:
          ValueError: if the batch does not fit the chips.
        """
        experiment = dataclasses.replace(self.experiment, mesh=mesh, batch_size=batch_size)
        abstract = abstract_mesh(chips, **dataclasses.asdict(mesh))
        loop.check_batch(experiment, abstract, self.stage.updates)
        self.stage.mesh = abstract
        batch = jax.tree.map(lambda leaf: _counted(leaf, batch_size), self.batch)
        moved = dataclasses.replace(self, experiment=experiment, mesh=abstract, batch=batch)
        moved.state = moved.placed(abstract)[0]
        return moved

    @property
    def dtype(self) -> Any:
        """Of computation."""
        return jnp.dtype(self.experiment.settings.dtype)

    def step(self) -> Any:
        """The loop's step, see `uae_jax.training.update.make_step`."""
        experiment = self.experiment
        return make_step(
            self.stage,
            self._optimiser(),
            accumulate=experiment.accumulate,
            ema=experiment.ema,
            max_nonfinite=experiment.max_nonfinite,
        )

    def _optimiser(self) -> Any:
        updates = self.experiment.steps * self.stage.updates
        return make_optimiser(self.experiment.optimiser, updates, self.parts.decayed, self.parts.trained)


def load(experiment: Experiment, chips: int, stand_ins: StandIns) -> Staged:
    """Loads a stage by its shapes, for so many chips.

    The batch is made of images of the config's resolution and of captions that fill `max_tokens`.

    Raises:
      ValueError: if mesh or batch do not fit the chips, or a model cannot be.
    """
    stage = registry.find(experiment.stage)(experiment.settings, experiment.seed)
    mesh = abstract_mesh(chips, **dataclasses.asdict(experiment.mesh))
    loop.check_batch(experiment, mesh, stage.updates)
    kept: list[Parts] = []

    def run() -> tuple[Tree, Tree, Tree]:
        kept.append(stage.load(mesh))
        return kept[0].params, kept[0].frozen, kept[0].state

    with shapes_only.shapes_only(stand_ins), use_mesh(mesh):
        params, frozen, state = jax.eval_shape(run)
    parts = dataclasses.replace(kept[0], params=params, frozen=frozen, state=state)
    batch = jax.tree.map(lambda leaf: _counted(leaf, experiment.batch_size), stage.collate(_samples(stage, experiment)))
    staged = Staged(experiment, stage, mesh, parts, frozen_axes(stage, frozen), None, batch)
    staged.state = staged.placed(mesh)[0]
    return staged


def frozen_axes(stage: Stage, frozen: Tree) -> Tree:
    """Logical axes of what a stage holds frozen: those of its models; all else lies on every chip."""
    if isinstance(tower := getattr(stage, "tower", None), Tower):
        return tower.frozen_axes
    judges = getattr(stage, "judges", None)
    axes = {}
    for name, tree in frozen.items():
        if name == "vae":
            axes[name] = autoencoder_kl.ARCHITECTURE.logical_axes.tree(tree)
        elif name == "judges":
            axes[name] = {part: judges.logical_axes(part, params) for part, params in tree.items()}
        elif name in ("encoder", "projector", "decoder"):
            axes[name] = stage.uae.towers[name].frozen_axes
        else:
            axes[name] = jax.tree.map(lambda leaf: (None,) * len(leaf.shape), tree)
    return axes


@functools.lru_cache(maxsize=64)
def parameters(architecture: Architecture, config: Any) -> Tree:
    """`Architecture.abstract`, which traces the model, kept; not to be changed."""
    return architecture.abstract(config)


def _samples(stage: Stage, experiment: Experiment) -> list[Sample]:
    """Images of the resolution, or latents, and captions that fill the limit."""
    data, settings = experiment.data, experiment.settings
    words = getattr(settings, "max_tokens", 0) or getattr(getattr(settings, "text", None), "max_tokens", 0) or 256
    caption = " ".join(["red"] * words)
    if getattr(settings, "precomputed", False):
        arrays = _precomputed(stage, data.resolution, caption)
        return [Sample(str(number), None, caption, "text", arrays) for number in range(_COLLATED)]
    side = data.resolution // data.multiple_of * data.multiple_of
    image = np.zeros((side, side, 3), np.uint8)
    if experiment.stage == "region_words":  # a label for each of an image's tokens
        asked = questions.ask(stage.prompts, stage.question, image[None])
        caption = SEPARATOR.join(["red"] * int((asked["asked/image_index"] >= 0).sum()))
    return [Sample(str(number), image, caption, "text") for number in range(_COLLATED)]


def _precomputed(stage: Stage, resolution: int, caption: str) -> dict[str, np.ndarray]:
    """What `uae data encode` writes of an image; where the config does not say how large, of the decoder's largest."""
    towers, vae = stage.uae.towers, stage.uae.vae_config
    side = resolution // vae.downsampling or towers["decoder"].config.sample_size
    tokens = len(stage.uae.rows.painted(caption).tokens)
    return {
        LATENTS: np.zeros((side, side, 2 * vae.latent_channels), np.float32),
        CONTEXT: np.zeros((tokens, towers["encoder"].config.text.width), np.float16),
    }


def _counted(leaf: Any, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype))


def _on(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _rows(mesh: Mesh | AbstractMesh) -> Any:
    """Splits an array over its rows, as `batching.place` does."""

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        names = ["batch", *(None,) * (len(leaf.shape) - 1)]
        return _on(leaf, NamedSharding(mesh, sharding.partition_spec(leaf.shape, names, mesh)))

    return place


def is_split(leaf: Any, axis: str) -> bool:
    """Whether a mesh axis splits a leaf."""
    return any(axis in (names or ()) for names in leaf.sharding.spec)


def chip_bytes(tree: Tree) -> int:
    """Bytes that the largest shard of every leaf takes on one chip, together."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            total += 8
            continue
        place = leaf.sharding or NamedSharding(None, PartitionSpec())
        total += int(np.prod(place.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
    return total
