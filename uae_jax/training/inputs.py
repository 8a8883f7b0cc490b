"""What a run reads, opened or looked for before any model is built: whatever is missing is told at once."""

import dataclasses

from jax.sharding import Mesh

from uae_jax.data.loader import Loader
from uae_jax.parallel import global_arrays
from uae_jax.stages.base import Stage
from uae_jax.training.config import Experiment


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Opened, and nothing of it read.

    Attributes:
      data: what this process trains on.
      validation: what every process evaluates on, as a whole; None for nothing.
    """

    data: Loader
    validation: Loader | None


def open_inputs(experiment: Experiment, stage: Stage, mesh: Mesh) -> Inputs:
    """Opens the data, and looks for the models that the stage will load. All processes at once.

    Raises:
      ValueError: if there is no such data or model; names it.
    """
    for name in ("data", "validation"):
        read = getattr(experiment, name)
        if stage.needs_captions and read is not None and not read.with_captions:
            raise ValueError(
                f"{name}.with_captions is False, but this stage reads captions; set --config.{name}.with_captions=true"
            )
    size, seed = experiment.batch_size, experiment.seed
    data = Loader(experiment.data, size, seed, rows=global_arrays.rows_here(mesh, size))
    validation = None if experiment.validation is None else Loader(experiment.validation, size, seed)
    stage.look_at_data([read for read in (experiment.data, experiment.validation) if read is not None])
    stage.look_for_models()
    return Inputs(data, validation)
