"""The one reward: how alike an image and its reconstruction are, by any weighted mixture of judges.

The cold start differentiates it, both reinforcement stages sample with it, evaluations report it. A judge is a scorer
(CLIP, LongCLIP, DINOv2, DINOv3) or a function of the user's own; one of weight 0 is held out: it is computed and
reported, and rewards nothing, so that a reward that is being gamed shows.

    judges = Judges.load(parts, mesh)
    reward = judges(judges.params, reference, reconstruction)      # pure

Letters: B pairs of images, H/W height and width.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uae_jax.rewards import custom
from uae_jax.rewards.custom import RewardFunction
from uae_jax.rewards.scorers import Scorer
from uae_jax.weights import checkpoint, errors, pretrained, uae

Array = jax.Array
LOW, HIGH = -1.0, 1.0  # of every part: cosines, and what a function of the user's may return
SLACK = 1e-3  # by which rounding may exceed them


@dataclasses.dataclass(frozen=True)
class RewardPart:
    """One judge.

    Attributes:
      name: what it is reported as; "clip", "longclip", "dinov2" and "dinov3" are the four of the unified score.
      weight: its share of the reward; 0 holds it out.
      model: folder or name of its scorer; "" takes the embedded one of this name.
      function: dotted path of a function instead, see `uae_jax.rewards.custom`.
    """

    name: str
    weight: float = 1.0
    model: str = ""
    function: str = ""

    def __post_init__(self):
        if not self.name or self.weight < 0:
            raise ValueError(f"reward part {self.name!r} has weight {self.weight}, wanted a name and at least 0")
        if self.model and self.function:
            raise ValueError(f"reward part {self.name!r} has a model and a function, wanted one of them")


UNIFIED = ("clip", "longclip", "dinov2", "dinov3")
DEFAULT_PARTS = tuple(RewardPart(name, float(name == "clip")) for name in UNIFIED)


@flax.struct.dataclass
class Reward:
    """What the judges say.

    Attributes:
      total: f32[B], the mean of the parts by their weights.
      parts: name -> f32[B], held-out ones too.
    """

    total: Array
    parts: dict[str, Array]


class Judges:
    """Computes the reward. Holds no arrays but `params`, which are passed to every call."""

    def __init__(self, scorers: Mapping[str, Scorer], functions: Mapping[str, RewardFunction], weights: Mapping):
        """Keeps what it is given; `load` makes it.

        Args:
          scorers, functions: name -> judge; no name in both.
          weights: name -> weight, for all of them.

        Raises:
          ValueError: if names and weights do not go together, or all weights are 0.
        """
        names = [*scorers, *functions]
        if sorted(names) != sorted(weights) or len(set(names)) != len(names):
            raise ValueError(f"judges are {', '.join(names)}, weights of {', '.join(weights)}; wanted one each")
        if not sum(weights.values()) > 0:
            raise ValueError(f"weights are {dict(weights)}, wanted at least one above 0")
        self.weights = {name: weights[name] / sum(weights.values()) for name in names}
        self.params = {name: scorer.model.params for name, scorer in scorers.items()}
        self._scorers, self._functions = dict(scorers), dict(functions)

    @classmethod
    def load(cls, parts: Sequence[RewardPart], mesh: Mesh | None = None) -> "Judges":
        """Loads all scorers and functions.

        Raises:
          ValueError: on a name that stands twice, a function that is not there, or no weight above 0.
          WeightsError: if a scorer cannot be loaded.
        """
        check_parts(parts)
        scorers = {p.name: Scorer.from_pretrained(scorer_folder(p), mesh=mesh) for p in parts if not p.function}
        functions = {p.name: custom.find(p.function) for p in parts if p.function}
        return cls(scorers, functions, {p.name: p.weight for p in parts})

    def logical_axes(self, name: str, params: Any) -> Any:
        """Logical axes of a scorer's parameters."""
        return self._scorers[name].model.architecture.logical_axes.tree(params)

    @property
    def sizes(self) -> dict[str, tuple[Any, int]]:
        """Name -> (config of the scorer, side of its input in pixels)."""
        return {name: (each.model.config, each.preprocessing.side) for name, each in self._scorers.items()}

    @property
    def rewarded(self) -> tuple[str, ...]:
        """Names of the judges that count."""
        return tuple(name for name, weight in self.weights.items() if weight)

    def __call__(self, params: Any, reference: Array, reconstruction: Array) -> Reward:
        """`reconstruction_reward`: pure and differentiable in both images.

        A value that is no number, or outside [-1, 1], becomes NaN in part and total, so that whoever uses it for an
        update is stopped; it never becomes a low reward.

        Args:
          params: `self.params`.
          reference: f32[B, H, W, 3] in [0, 1].
          reconstruction: f32[B, H', W', 3] in [0, 1].
        """
        seen = self.look(params, reference)
        return self.compare(params, seen, reference, reconstruction)

    def look(self, params: Any, reference: Array) -> dict[str, Array]:
        """What the scorers see in the references: name -> f32[B, E]. Once for all reconstructions of a group."""
        return {
            name: scorer.features(params[name], scorer.preprocessing.on_device(reference))
            for name, scorer in self._scorers.items()
        }

    def compare(self, params: Any, seen: dict[str, Array], reference: Array, reconstruction: Array) -> Reward:
        """The reward, given what `look` saw of the references; other arguments as for a call."""
        again = self.look(params, reconstruction)
        parts = {name: jnp.sum(seen[name] * again[name], axis=-1) for name in again}
        parts |= {name: function(reference, reconstruction) for name, function in self._functions.items()}
        parts = {name: _checked(value, reference.shape[0], name) for name, value in parts.items()}
        total = sum(self.weights[name] * parts[name] for name in self.rewarded)
        return Reward(total, parts)

    def metrics(self, parts: Mapping[str, Array]) -> dict[str, Array]:
        """Means for the log: "reward/NAME" of judges that count, "held_out/NAME" of those that do not."""
        return {f"{'reward' if self.weights[name] else 'held_out'}/{name}": x.mean() for name, x in parts.items()}


def unified(parts: Mapping[str, Array]) -> Array:
    """The unified score: the plain mean of the four scorers, or of those of the four that there are."""
    there = [parts[name] for name in counted(parts)]
    return sum(there) / len(there)


def counted(names: Iterable[str]) -> tuple[str, ...]:
    """Scorers that a mean over scorers is over: those of the four that there are; without any of them, all."""
    names = tuple(names)
    return tuple(name for name in UNIFIED if name in names) or names


def check_parts(parts: Sequence[RewardPart]) -> None:
    """Raises `ValueError` where `Judges.load` would, without loading a model."""
    names = [part.name for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not any(part.weight for part in parts):
        raise ValueError(f"reward parts are {', '.join(names)}; wanted each name once and a weight above 0")
    for part in parts:
        if part.function:
            custom.find(part.function)


def look_for(parts: Sequence[RewardPart]) -> None:
    """Raises `WeightsError` where `Judges.load` will find no scorer; reads no weights."""
    for part in parts:
        if not part.function:
            with errors.named(f"reward {part.name!r}"):
                pretrained.read_config(scorer_folder(part))


def scorer_folder(part: RewardPart) -> str:
    """Where a part's scorer lies."""
    return part.model or str(checkpoint.EMBEDDED / "tiny" / uae.SCORERS / part.name)


def _checked(value: Array, count: int, name: str) -> Array:
    if value.shape != (count,):
        raise ValueError(f"reward {name!r} has shape {value.shape}, wanted ({count},): one number per pair of images")
    fine = (value >= LOW - SLACK) & (value <= HIGH + SLACK)
    return jnp.where(fine, value, jnp.nan).astype(jnp.float32)
