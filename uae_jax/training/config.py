"""What a training run is, as dataclasses: the schema that every file in `configs/` is checked against."""

import dataclasses
from typing import Any, Literal

from uae_jax.data.config import DataConfig


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes, see `uae_jax.parallel.mesh.make_mesh`; one of them may be -1, "the rest".

    Attributes:
      data: copies of the parameters, each with its own part of the batch.
      fsdp: parts that parameters are split into over their widths; the batch is split over it, too.
      tensor: parts of heads and hidden widths.
      sequence: parts of the token axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """AdamW or Muon, and the schedule.

    Attributes:
      kind: "adamw", or "muon" (arXiv 2502.16982), which moves matrices by orthogonalised momentum and leaves the rest
        to Adam. From nothing it needs a fraction of the samples.
      learning_rate: at the top of the schedule.
      schedule: after the warm-up: "constant", "cosine" or "linear" down to `final_fraction`.
      warmup: updates over which the rate rises, from one part in so many to all of it.
      final_fraction: of the rate at the end.
      b1, b2, eps: of Adam.
      weight_decay: decoupled; of matrices only, not of norms, biases, embeddings of positions and the like.
      clip: largest global norm of the gradient; 0 does not clip.
      moments: dtype of Adam's first moment and of Muon's momentum; Adam's second moment is float32.
      muon_leaves_out: patterns; a matrix whose path holds one is left to Adam, as inputs and outputs of a model are.
      others_rate: rate of what Muon leaves to Adam, relative to the learning rate.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: int = 100
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    moments: Literal["float32", "bfloat16"] = "float32"
    muon_leaves_out: tuple[str, ...] = ("embed", "head", "proj_out")
    others_rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class EMAConfig:
    """An exponential moving average of the parameters, which evaluation, pictures and the result use.

    Attributes:
      decay: 0 keeps none. At its own step n, from 0, it is min(decay, (1 + n) / (10 + n)), so that the start is
        forgotten: also with `every`, where others count updates and a short run's average stays near its start.
      every: updates between two of its steps.
    """

    decay: float = 0.0
    every: int = 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One stage's run.

    Attributes:
      stage: a name in `uae_jax.stages.registry`.
      settings: the stage's own, a dataclass of its `Settings`.
      data: what it trains on.
      validation: what it is evaluated on; None evaluates nothing.
      steps: optimiser updates in all.
      batch_size: samples per update, all devices and micro-batches together.
      accumulate: micro-batches per update.
      seed: of initialisation, data order and all noise.
      log_every: steps between two readings of the metrics, the only times the host waits for the device.
      evaluate_every: steps between evaluations; 0 evaluates at the end only.
      evaluation_batches: batches of an evaluation.
      checkpoint_every: steps between checkpoints.
      keep: newest checkpoints that are kept.
      keep_every: steps of checkpoints that are kept for good; 0 for none.
      max_nonfinite: steps in a row with a loss or gradient that is no number, after which the run ends.
      profile_steps: steps of which a profile is written to WORKDIR/profile, from the fourth of a start on; 0 for none.
    """

    stage: str
    settings: Any
    data: DataConfig
    validation: DataConfig | None = None
    mesh: MeshConfig = MeshConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    ema: EMAConfig = EMAConfig()
    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 0
    evaluation_batches: int = 4
    checkpoint_every: int = 500
    keep: int = 2
    keep_every: int = 0
    max_nonfinite: int = 10
    profile_steps: int = 0
