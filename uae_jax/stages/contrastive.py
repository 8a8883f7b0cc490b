"""Stage `contrastive`: CLIP (Radford et al. 2021, arXiv 2103.00020), and LongCLIP (Zhang et al. 2024, 2403.15378).

Each image is to be told from all others in the batch by its caption, and each caption by its image. "The batch" is
that of all devices together, but of one micro-batch: `accumulate` above 1 means fewer negatives.

Letters: B pairs of image and caption, T tokens, E width of the shared space, G pairs of an evaluation's group.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from uae_jax.averages import divided
from uae_jax.data.records import Sample
from uae_jax.models import clip
from uae_jax.parallel import global_arrays, sharding
from uae_jax.stages import clip_text, images, models
from uae_jax.stages.base import Aux, Parts, Picture, Stage
from uae_jax.weights import checkpoint
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.clip import MODEL
from uae_jax.weights.pretrained import write_model

Array = jax.Array
Tree = Any

SIZES = {
    "clip-tiny": (MODEL, clip.tiny),
    "longclip-tiny": (MODEL, clip.tiny_longclip),
    "clip-l14": (MODEL, clip.clip_l14),
    "longclip-l14": (MODEL, clip.longclip_l14),
}
MAX_SCALE = 100.0  # of the logits; beyond it CLIP became unstable (Radford et al., 2.5)
KEPT_POSITIONS = 20  # that stretching leaves as they were, and untrained
_GROUP = 64
_NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class ContrastiveSettings:
    """Settings of the stage.

    Attributes:
      model: "new:clip-tiny", "new:longclip-tiny", "new:clip-l14", "new:longclip-l14", or a CLIPModel folder.
      tokenizer: folder; "" takes the model's own, and for a new model that of the embedded CLIP.
      stretch_positions: makes a LongCLIP of a CLIP: 77 text positions become 248, the first 20 of which stay fixed.
      short_weight: of LongCLIP's second loss: first sentences against images of which only the principal components
        of the batch are left. 0 leaves it out.
      principal_components: how many.
      pictures: images that are shown after an evaluation.
      dtype: of activations, "float32" or "bfloat16".
      remat: what the backward pass keeps, see `Runtime`.
    """

    model: str = "new:clip-tiny"
    tokenizer: str = ""
    stretch_positions: bool = False
    short_weight: float = 0.0
    principal_components: int = 32
    pictures: int = 8
    dtype: str = "float32"
    remat: str = "none"


class Contrastive(Stage):
    """See the module.

    A batch is {"images": u8[B, S, S, 3], "tokens": i32[B, T], "text": i32[B, 2] fingerprints of the captions,
    "cut": bool[B]}, and with `short_weight` the same of first sentences, "short_tokens" and "short_text".
    """

    Settings = ContrastiveSettings

    def __init__(self, settings: ContrastiveSettings, seed: int = 0):
        """Checks the settings.

        Raises:
          ValueError: on an unknown size, a weight below 0 or no components.
        """
        super().__init__(settings, seed)
        models.check_name(settings.model, SIZES)
        if settings.short_weight < 0 or settings.principal_components < 1:
            raise ValueError(
                f"short_weight is {settings.short_weight}, principal_components {settings.principal_components}; "
                "wanted a weight of at least 0, and at least 1 component"
            )
        self.runtime = models.runtime(settings.dtype, settings.remat)
        self.model: Pretrained | None = None

    def look_for_models(self) -> None:
        models.look_for(self.settings.model)
        clip_text.tokenizer_folder(self.settings.tokenizer, None)

    def load(self, mesh: Mesh) -> Parts:
        start = models.open_start(self.settings.model, SIZES, self.seed, mesh)
        self.model = start.model
        if self.settings.stretch_positions:
            self.model = stretched(self.model, mesh)
        config = self.model.config
        folder = clip_text.tokenizer_folder(self.settings.tokenizer, start.folder)
        self.tokens = clip_text.CLIPTokens(folder, config.text)
        self.image_settings = models.image_settings(start.folder, "clip", config.vision.image_size)
        params, self.model.params = self.model.params, None  # the loop's from here on
        return Parts(params, params_axes=self.model.architecture.logical_axes.tree(params))

    def collate(self, samples: Sequence[Sample]) -> Tree:
        pixels, side = images.stack_images(samples), self.model.config.vision.image_size
        if pixels.shape[1:3] != (side, side):
            got = f"{pixels.shape[2]}x{pixels.shape[1]}"
            raise ValueError(f"images are {got} pixels, wanted {side}x{side}; set the data's resolution to {side}")
        captions = [sample.caption for sample in samples]
        tokens, cut = self.tokens(captions)
        batch = {"images": pixels, "tokens": tokens, "text": clip_text.fingerprints(captions), "cut": cut}
        if self.settings.short_weight:
            short = [clip_text.first_sentence(caption) for caption in captions]
            batch |= {"short_tokens": self.tokens(short)[0], "short_text": clip_text.fingerprints(short)}
        return batch

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        params = self._constrained(params)
        logits, features = self._compare(params, batch)
        value, right = pair_losses(logits, batch["text"])
        metrics = {f"accuracy_{name}": hits.mean() for name, hits in right.items()}
        metrics["logit_scale"] = jnp.exp(params["logit_scale"])
        metrics["cut_captions"] = batch["cut"].mean(dtype=jnp.float32)
        if self.settings.short_weight:
            coarse = principal_part(features["image"], self.settings.principal_components)
            text = self._text_features(params, batch["short_tokens"])
            short, _ = pair_losses(jnp.exp(params["logit_scale"]) * coarse @ text.T, batch["short_text"])
            metrics |= {"loss_long": value.mean(), "loss_short": short.mean()}
            value = value + self.settings.short_weight * short
        return value.mean(), Aux(metrics, per_example=value)

    def evaluate(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> dict[str, Array]:
        """The loss, and how often the right one of 64 (of the batch, if that is smaller) is found, both ways.

        Groups are neighbours in the batch; what is over after the last whole group is left out.
        """
        value, aux = self.loss(params, state, frozen, batch, key)
        logits, _ = self._compare(self._constrained(params), batch)
        size = min(_GROUP, logits.shape[0])
        starts = range(0, logits.shape[0] - size + 1, size)
        found = [pair_losses(logits[s : s + size, s : s + size], batch["text"][s : s + size])[1] for s in starts]
        hits = {f"{name}_1_of_{size}": jnp.stack([group[name] for group in found]).mean() for name in found[0]}
        return {"loss": value, **divided(aux.metrics), **hits}

    def pictures(
        self, params: Tree, state: Tree, frozen: Tree, batch: Tree, samples: Sequence[Sample]
    ) -> list[Picture]:
        """Images with their own caption and the one that is nearest in the batch."""
        logits = global_arrays.to_host(self._logits(params, batch))
        shown = samples[: min(self.settings.pictures, len(logits))]
        texts = []
        for row, sample in enumerate(shown):
            nearest = samples[int(logits[row].argmax())].caption
            verdict = "nearest caption: its own" if nearest == sample.caption else f"nearest caption: {nearest}"
            texts.append(f"{sample.caption}\n{verdict}")
        return [Picture("retrieval", ("image",), [(sample.image,) for sample in shown], texts)]

    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        """Writes a transformers CLIPModel with image settings and tokenizer; the temperature within its bound."""
        params = params | {"logit_scale": jnp.minimum(params["logit_scale"], math.log(MAX_SCALE))}
        with checkpoint.NewFolder(folder, force=True) as new:
            write_model(Pretrained(self.model.architecture, self.model.config, params), new)
            checkpoint.write_json(new / "preprocessor_config.json", self.image_settings)
            self.tokens.save(new)

    def _constrained(self, params: Tree) -> Tree:
        """The parameters as they are used: bounded temperature, and the positions that stretching keeps fixed."""
        params = params | {"logit_scale": at_most(params["logit_scale"], math.log(MAX_SCALE))}
        if self.settings.stretch_positions:
            table = params["text"]["positions"]
            fixed = (jnp.arange(table.shape[0]) < KEPT_POSITIONS)[:, None]
            table = jnp.where(fixed, jax.lax.stop_gradient(table), table)
            params = params | {"text": params["text"] | {"positions": table}}
        return params

    @property
    def _module(self) -> Any:
        return self.model.architecture.module(self.model.config, self.runtime)

    def _compare(self, params: Tree, batch: Tree) -> tuple[Array, dict[str, Array]]:
        pixels = images.normalised(batch["images"], self.image_settings["image_mean"], self.image_settings["image_std"])
        return self._module.apply({"params": params}, pixels, batch["tokens"])

    @functools.cached_property
    def _logits(self) -> Any:
        return jax.jit(lambda params, batch: self._compare(params, batch)[0])

    def _text_features(self, params: Tree, tokens: Array) -> Array:  # i32[B, T] -> f32[B, E], of length 1
        features, _ = self._module.apply({"params": params}, tokens, method="encode_text")
        features = features.astype(jnp.float32)
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def pair_losses(logits: Array, text: Array) -> tuple[Array, dict[str, Array]]:
    """Symmetric InfoNCE, in which equal captions are no negatives of each other.

    Where pairs i and j have the same caption, logits[i, j] and logits[j, i] are taken out of both softmaxes: image i
    is not told to avoid a text that is right, nor is the text to prefer one of its two images.

    Args:
      logits: f32[B, B], of image i and text j.
      text: i32[B, 2] fingerprints of the texts.

    Returns:
      f32[B], nats, the mean of both directions; and hits, bool[B] as f32, by direction, "image_to_text" and
      "text_to_image": whether the right one of those left has the highest logit.
    """
    same = jnp.all(text[:, None] == text[None], axis=-1)
    rivals = jnp.where(same & ~jnp.eye(len(text), dtype=bool), _NEVER, logits)
    own = jnp.diagonal(rivals)
    both = [jax.nn.logsumexp(rivals, axis=axis) - own for axis in (1, 0)]
    right = {
        name: (jnp.argmax(rivals, axis=axis) == jnp.arange(len(text))).astype(jnp.float32)
        for name, axis in (("image_to_text", 1), ("text_to_image", 0))
    }
    return (both[0] + both[1]) / 2, right


def principal_part(features: Array, components: int) -> Array:
    """Features of which only the batch's first principal components are left, as LongCLIP has them for short texts.

    The components are constants to the gradient: that of an eigenvector is not finite where eigenvalues are equal, as
    they are when the batch is smaller than the features are wide.

    Args:
      features: f32[B, E], of length 1; the result is not brought back to it.
      components: at most E are used.

    Returns:
      f32[B, E].
    """
    mean = features.mean(0)
    centred = features - mean
    constant = jax.lax.stop_gradient(centred)
    _, vectors = jnp.linalg.eigh(constant.T @ constant)  # eigenvalues ascend
    basis = vectors[:, -min(components, features.shape[1]) :]  # [E, components]
    return mean + centred @ basis @ basis.T


@jax.custom_vjp
def at_most(x: Array, bound: float) -> Array:
    """min(x, bound), whose gradient still leads back below the bound, but never further above it."""
    return jnp.minimum(x, bound)


def _at_most_forward(x: Array, bound: float) -> tuple[Array, Array]:
    return jnp.minimum(x, bound), x >= bound


def _at_most_backward(above: Array, grad: Array) -> tuple[Array, None]:
    return jnp.where(above, jnp.maximum(grad, 0), grad), None  # descent goes against the gradient


at_most.defvjp(_at_most_forward, _at_most_backward)


def stretched(model: Pretrained, mesh: Mesh) -> Pretrained:
    """Gives a CLIP the text positions of LongCLIP, on its mesh; see `interpolate_positions`."""
    table = model.params["text"]["positions"]
    make = functools.partial(clip.interpolate_positions, keep=KEPT_POSITIONS)
    shape = jax.eval_shape(make, table).shape
    names = model.architecture.logical_axes.of("text/positions")
    placed = NamedSharding(mesh, sharding.partition_spec(shape, names, mesh))
    positions = jax.jit(make, out_shardings=placed)(table)
    text = dataclasses.replace(model.config.text, positions=shape[0])
    params = model.params | {"text": model.params["text"] | {"positions": positions}}
    return Pretrained(model.architecture, dataclasses.replace(model.config, text=text), params)
