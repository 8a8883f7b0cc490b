"""The projector: the only path from the encoder's hidden states to the decoder's conditioning.

Letters: B batch, T tokens, D encoder width, M hidden width, E width of the decoder's conditioning.
"""

import dataclasses

import flax.linen as nn
import jax

from uae_jax.models.layers import ACTIVATIONS, Linear
from uae_jax.models.runtime import Runtime
from uae_jax.parallel.sharding import LogicalAxes, constrain

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """Sizes; the defaults are those of the published UAE model (Qwen2.5-VL-3B to SD3.5-Large)."""

    width: int = 2048
    hidden: int = 8192
    out: int = 4096

    @classmethod
    def small(cls) -> "ProjectorConfig":
        """Between the small encoder and the small decoder."""
        return cls(width=1024, hidden=4096, out=1024)

    @classmethod
    def tiny(cls) -> "ProjectorConfig":
        """Between the tiny encoder and the tiny decoder."""
        return cls(width=128, hidden=256, out=128)


LOGICAL_AXES = LogicalAxes(
    (r"up/kernel", ("embed", "mlp")),
    (r"up/bias", ("mlp",)),
    (r"down/kernel", ("mlp", "embed")),
    (r"down/bias", (None,)),
)


class Projector(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    config: ProjectorConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, hidden: Array) -> Array:  # [B, T, D] -> [B, T, E]
        x = Linear(self.config.hidden, runtime=self.runtime, name="up")(hidden)
        x = ACTIVATIONS["gelu"](constrain(x, "batch", "length", "act_mlp"))
        return Linear(self.config.out, runtime=self.runtime, name="down")(x)


def example_inputs(config: ProjectorConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that `init` accepts."""
    return (jax.ShapeDtypeStruct((1, 1, config.width), "float32"),)
