"""What the TPU compiler said of whole stages, kept in `recorded.json`: what closed forms are held to.

A new entry is what `uae plan --config CONFIG OVERRIDES --topology TOPOLOGY --json FILE` says where libtpu is installed:
`peak_compiled` of `bytes_per_chip`, in GiB, and `collectives` as they stand there ([] where they were not kept).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from uae_jax.plan import staged, topologies
from uae_jax.plan.collectives import Collective
from uae_jax.plan.staged import Staged
from uae_jax.plan.stand_ins import StandIns
from uae_jax.training import configure

FILE = Path(__file__).with_name("recorded.json")


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One compilation.

    Attributes:
      config, overrides, topology: what was compiled, as `uae plan` takes them.
      compiler: and its version.
      peak_gib: of one chip.
      collectives: of the program.
    """

    config: str
    overrides: tuple[str, ...]
    topology: str
    compiler: str
    peak_gib: float
    collectives: tuple[Collective, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.config, self.topology, *self.overrides])

    @property
    def stage(self) -> str:
        """The name of the config's file."""
        return Path(self.config.partition(":")[0]).stem

    def load(self) -> Staged:
        """The stage, by its shapes."""
        ((_, experiment),) = configure.load_config(self.config, self.overrides)
        return staged.load(experiment, topologies.parse(self.topology).count, StandIns("full"))


def entries() -> list[Recorded]:
    """All that is recorded."""
    return [_entry(**each) for each in json.loads(FILE.read_text())]


def _entry(overrides: list[str], collectives: list[dict[str, Any]], **rest: Any) -> Recorded:
    found = tuple(Collective(**each | {"shapes": tuple(map(tuple, each["shapes"]))}) for each in collectives)
    return Recorded(overrides=tuple(overrides), collectives=found, **rest)
