"""A stage small enough to follow by hand: linear regression, y = x w + b, on samples that carry x and y."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.averages import Mean
from uae_jax.parallel import global_arrays
from uae_jax.stages.base import Aux, Parts, Picture, Stage


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings: `model` as of stages that begin from a folder; from sample `poison` on (by its number) x is NaN."""

    width: int = 4
    noise: float = 0.0
    model: str = ""
    poison: int | None = None


class Toy(Stage):
    """Least squares, with noise on the targets where asked for; the stage's own state counts what it has seen."""

    Settings = Settings
    needs_captions = False

    def load(self, mesh):
        params = {"linear": {"kernel": jnp.zeros((self.settings.width, 2)), "bias": jnp.zeros(2)}}
        axes = {"linear": {"kernel": ("embed", None), "bias": (None,)}}
        return Parts(params=params, state={"seen": jnp.zeros(())}, params_axes=axes)

    def collate(self, samples):
        """Mean colours of an image, with a one behind them; what is to be guessed are two sums of them."""
        x = np.stack([np.append(sample.image.mean((0, 1)) / 255, 1) for sample in samples]).astype(np.float32)
        if self.settings.poison is not None:
            numbers = np.array([int(sample.id.rpartition(":")[2]) for sample in samples])
            x[numbers >= self.settings.poison] = np.nan
        return {"x": x, "y": np.stack([x.sum(1), x[:, 0] - x[:, 1]], 1)}

    def loss(self, params, state, frozen, batch, key):
        noise = self.settings.noise * jax.random.normal(key, batch["y"].shape)
        guess = batch["x"] @ params["linear"]["kernel"] + params["linear"]["bias"]
        per_example = jnp.mean((guess - batch["y"] - noise) ** 2, axis=-1)
        seen = state["seen"] + batch["x"].shape[0]
        metrics = {"above": Mean.of((guess - batch["y"]) ** 2, batch["y"] > 0)}
        return per_example.mean(), Aux(metrics, {"seen": seen}, per_example)

    def pictures(self, params, state, frozen, batch, samples):
        return [Picture("guesses", ["x"], [[np.zeros((8, 8, 3), np.uint8)]], ["a guess"])]

    def save(self, params, state, frozen, folder):
        values = jax.tree.map(lambda x: x.tolist(), global_arrays.to_host(params))
        if jax.process_index():
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "toy.json").write_text(
            json.dumps({"from": self.settings.model, "seen": float(state["seen"]), **values})
        )


def batch(samples=16, width=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, width)).astype(np.float32)
    return {"x": x, "y": np.stack([x.sum(1), x[:, 0] - 1], 1)}
