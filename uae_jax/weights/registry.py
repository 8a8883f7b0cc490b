"""Every architecture that can be loaded, by the name in its published `config.json`."""

import difflib

from uae_jax.weights import autoencoder_kl, clip, dinov2, dinov3, projector, qwen2_5_vl, sd3
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.errors import WeightsError

ARCHITECTURES: dict[str, Architecture] = {
    arch.name: arch
    for arch in (
        autoencoder_kl.ARCHITECTURE,
        *clip.ARCHITECTURES,
        dinov2.ARCHITECTURE,
        dinov2.ARCHITECTURE_WITH_REGISTERS,
        dinov3.ARCHITECTURE,
        projector.ARCHITECTURE,
        qwen2_5_vl.ARCHITECTURE,
        sd3.ARCHITECTURE,
    )
}


def find(name: str, source: str = "config") -> Architecture:
    """Looks an architecture up by name.

    Raises:
      WeightsError: if it is unknown; names the nearest one and all others.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.0)
    raise WeightsError(
        f"{source}: unknown architecture {name!r}, nearest is {near[0]!r}; known: {', '.join(sorted(ARCHITECTURES))}"
    )


def name_in(config_json: dict, source: str) -> str:
    """Reads the architecture's name from a published `config.json`: transformers' or diffusers' way of stating it.

    Raises:
      WeightsError: if it states none.
    """
    names = config_json.get("architectures")
    name = config_json.get("_class_name") or (names[0] if isinstance(names, list) and names else None)
    if not isinstance(name, str):
        raise WeightsError(f"{source}: names no architecture, wanted 'architectures' or '_class_name'")
    return name
