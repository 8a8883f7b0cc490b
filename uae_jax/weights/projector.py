"""The projector's place in the published UAE checkpoint: `projector.0` and `projector.2`, beside the encoder."""

from uae_jax.models.projector import LOGICAL_AXES, Projector, ProjectorConfig, example_inputs
from uae_jax.weights.architecture import Architecture, Tensors
from uae_jax.weights.checkpoint import MODEL
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.table import Entry, linear

_FIELDS = {"width": "input_size", "hidden": "hidden_size", "out": "output_size"}


def config_from_tensors(tensors: Tensors, source: str) -> ProjectorConfig:
    """Reads the sizes off the two weights, since the published folder states them nowhere.

    Raises:
      WeightsError: if a weight is missing or is no matrix.
    """
    shapes = []
    for key in ("projector.0.weight", "projector.2.weight"):
        if key not in tensors or len(tensors[key].shape) != 2:
            got = list(tensors[key].shape) if key in tensors else "nothing"
            raise WeightsError(f"{source}: {key}: got {got}, wanted a matrix")
        shapes.append(tensors[key].shape)
    return ProjectorConfig(width=shapes[0][1], hidden=shapes[0][0], out=shapes[1][0])


def config_from_json(value: dict) -> ProjectorConfig:
    """Reads what `config_to_json` writes."""
    missing = [name for name in _FIELDS.values() if type(value.get(name)) is not int]
    if missing:
        raise WeightsError(f"config.json: {', '.join(missing)} missing, wanted whole numbers")
    return ProjectorConfig(**{ours: value[theirs] for ours, theirs in _FIELDS.items()})


def config_to_json(config: ProjectorConfig) -> dict:
    """States the sizes; a projector has no folder of its own in the published layout, but may in ours."""
    return {"architectures": ["UAEProjector"]} | {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}


def table(config: ProjectorConfig) -> list[Entry]:
    """One entry per parameter."""
    del config
    return [*linear("up", "projector.0"), *linear("down", "projector.2")]


ARCHITECTURE = Architecture(
    name="UAEProjector",
    config_class=ProjectorConfig,
    module=Projector,
    example_inputs=example_inputs,
    logical_axes=LOGICAL_AXES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    table=table,
    file_stem=MODEL,
)
