"""Stage `self_distillation`: DINOv2 and DINOv3 from images alone (Oquab et al. 2023, arXiv 2304.07193).

A student sees crops of an image, partly masked, and is to say of each what a teacher, the average of its own past,
says of two large crops: behind a head for the image as a whole (DINO) and another for hidden patches (iBOT), with
KoLeo to spread the images' features. DINOv3's Gram anchoring, which repairs patch features late in very long runs, is
left out, as are stochastic depth and masks in blocks.

Letters: B images, V crops of one (the first G = 2 are global), S side of a crop, N patches of a global crop, D width,
K prototypes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uae_jax.averages import divided
from uae_jax.data.records import Sample
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.parallel import global_arrays, sharding
from uae_jax.stages import distillation, images, models
from uae_jax.stages.base import Aux, Parts, Picture, Stage
from uae_jax.stages.crops import Augmentation, views
from uae_jax.stages.distillation import Head, HeadConfig
from uae_jax.weights import checkpoint, dinov2, dinov3
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.pretrained import write_model

Array = jax.Array
Tree = Any

SIZES = {
    "dinov2-tiny": (dinov2.ARCHITECTURE, DINOv2Config.tiny),
    "dinov2-large": (dinov2.ARCHITECTURE, DINOv2Config.large),
    "dinov2-large-registers": (dinov2.ARCHITECTURE_WITH_REGISTERS, DINOv2Config.large_with_registers),
    "dinov3-tiny": (dinov3.ARCHITECTURE, DINOv3Config.tiny),
    "dinov3-large": (dinov3.ARCHITECTURE, DINOv3Config.large),
}
_GLOBAL = 2
_GROUP = 64


@dataclasses.dataclass(frozen=True)
class SelfDistillationSettings:
    """Settings of the stage.

    Attributes:
      model: "new:dinov2-tiny", "new:dinov3-tiny", "new:dinov2-large", ..., or a folder of either family.
      head: sizes of each of the two heads.
      dino, ibot, koleo: weights of the losses; 0 leaves one out.
      local_crops: small crops of each image, which the student alone sees.
      global_size, local_size: sides of crops, pixels, multiples of the patch side; 0 takes the model's image size for
        global ones, and half the global size for local ones.
      global_views, local_views: how crops differ from their image. Mirroring is off: left and right are told apart.
      mask_share: of global crops that have patches hidden, for iBOT.
      mask_ratio: smallest and largest part of the patches that is hidden then.
      momentum: of the teacher at first; it rises to 1 by a cosine over `momentum_steps` updates.
      temperature: of the student.
      teacher_temperature: at first and after `temperature_warmup` updates, linear between.
      centring: of the teacher, "sinkhorn" (DINOv2) or "mean", a running one (DINO).
      centre_momentum: of the running mean.
      pictures: images that are shown after an evaluation.
      dtype: of activations, "float32" or "bfloat16".
      remat: what the backward pass keeps, see `Runtime`.
    """

    model: str = "new:dinov2-tiny"
    head: HeadConfig = HeadConfig()
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    local_crops: int = 4
    global_size: int = 0
    local_size: int = 0
    global_views: Augmentation = Augmentation(scale=(0.4, 1.0))
    local_views: Augmentation = Augmentation(scale=(0.1, 0.4))
    mask_share: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    momentum: float = 0.996
    momentum_steps: int = 10_000
    temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warmup: int = 1000
    centring: str = "sinkhorn"
    centre_momentum: float = 0.9
    pictures: int = 8
    dtype: str = "float32"
    remat: str = "none"


class SelfDistillation(Stage):
    """See the module.

    A batch is {"images": u8[B, H, W, 3]}. Trained are "backbone", "head" and, with iBOT, "patch_head"; the state holds
    the same tree as "teacher", and "centre", "patch_centre" f32[K] and "updates" i32[].
    """

    Settings = SelfDistillationSettings
    needs_captions = False

    def __init__(self, settings: SelfDistillationSettings, seed: int = 0):
        """Checks the settings.

        Raises:
          ValueError: if they make no sense; says which.
        """
        super().__init__(settings, seed)
        models.check_name(settings.model, SIZES)
        _check(settings)
        self.runtime = models.runtime(settings.dtype, settings.remat)
        self.model: Pretrained | None = None

    def look_for_models(self) -> None:
        models.look_for(self.settings.model)

    def check_steps(self, steps: int) -> None:
        if steps > self.settings.momentum_steps:
            raise ValueError(
                f"momentum_steps is {self.settings.momentum_steps}, wanted at least steps, {steps}: behind it the "
                "teacher, which is the result, stands still"
            )

    def load(self, mesh: Mesh) -> Parts:
        start = models.open_start(self.settings.model, SIZES, self.seed, mesh)
        self.model, config = start.model, start.model.config
        self._check_sizes()
        family = "dinov2" if isinstance(config, DINOv2Config) else "dinov3"
        self.image_settings = models.image_settings(start.folder, family, config.image_size)
        backbone, self.model.params = self.model.params, None  # the loop's from here on
        params = {"backbone": backbone} | self._new_heads(mesh)
        axes = {name: distillation.HEAD_AXES.tree(head) for name, head in params.items() if name != "backbone"}
        axes["backbone"] = self.model.architecture.logical_axes.tree(backbone)
        placed = sharding.shardings(params, axes, mesh)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=placed)
        centre = jnp.zeros(self.settings.head.prototypes)
        state = {"teacher": copy(params), "centre": centre, "patch_centre": jnp.zeros_like(centre)}
        state["updates"] = jnp.zeros((), jnp.int32)
        state_axes = {"teacher": axes, "centre": (None,), "patch_centre": (None,), "updates": ()}
        return Parts(params, state=state, params_axes=axes, state_axes=state_axes)

    def collate(self, samples: Sequence[Sample]) -> Tree:
        return {"images": images.stack_images(samples)}

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        s = self.settings
        view_key, mask_key = jax.random.split(key)
        large, small = self._views(batch["images"], view_key)
        count, patches = large.shape[0], (self.global_size // self.model.config.patch_size) ** 2
        hidden = None
        if s.ibot:
            hidden = distillation.random_mask(mask_key, count, patches, s.mask_ratio, s.mask_share)
        told, told_patches = self._backbone(state["teacher"]["backbone"], large, patches)
        seen, seen_patches = self._backbone(params["backbone"], large, patches, hidden)
        logits = self._head(params["head"], seen).reshape(-1, _GLOBAL, s.head.prototypes)
        if s.local_crops:
            local, _ = self._backbone(params["backbone"], small, 0)
            local = self._head(params["head"], local).reshape(-1, s.local_crops, s.head.prototypes)
            logits = jnp.concatenate([logits, local], axis=1)  # [B, V, K]
        targets, centre = self._targets(self._head(state["teacher"]["head"], told), state, "centre")
        dino = crop_losses(targets.reshape(-1, _GLOBAL, s.head.prototypes), logits, s.temperature)
        koleo = self._koleo(seen)
        value = s.dino * dino + s.koleo * koleo
        metrics = {"dino": dino.mean(), "koleo": koleo.mean(), **_health(targets, seen, told)}
        state = state | {"centre": centre}
        if s.ibot:
            ibot, centre = self._ibot(params, state, seen_patches, told_patches, hidden)
            value, metrics["ibot"] = value + s.ibot * ibot, ibot.mean()
            state = state | {"patch_centre": centre}
        return value.mean(), Aux(metrics, state, value)

    def after_update(self, params: Tree, state: Tree, step: Array) -> Tree:
        """The teacher moves towards the student."""
        momentum = self.momentum_at(step)
        teacher = jax.tree.map(lambda old, new: old * momentum + new * (1 - momentum), state["teacher"], params)
        return state | {"teacher": teacher, "updates": state["updates"] + 1}

    def momentum_at(self, step: Array) -> Array:
        """1 - (1 - momentum) (1 + cos(pi step / momentum_steps)) / 2, and 1 from there on: f32[]."""
        done = jnp.clip(step / self.settings.momentum_steps, 0, 1)
        return 1 - (1 - self.settings.momentum) * (1 + jnp.cos(jnp.pi * done)) / 2

    def evaluate(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> dict[str, Array]:
        """The loss, and how often the teacher finds another global crop of the same image, 1 of 64.

        Groups are neighbours in the batch (all of it, if that is smaller than 64); what is over after the last whole
        group is left out.
        """
        value, aux = self.loss(params, state, frozen, batch, key)
        large, _ = self._views(batch["images"], jax.random.fold_in(key, 1))
        features, _ = self._backbone(state["teacher"]["backbone"], large, 0)
        pairs = distillation.unit(features.astype(jnp.float32)).reshape(-1, _GLOBAL, features.shape[-1])
        size = min(_GROUP, len(pairs))
        groups = pairs[: len(pairs) // size * size].reshape(-1, size, *pairs.shape[1:])
        cosine = jnp.einsum("gbd,gcd->gbc", groups[:, :, 0], groups[:, :, 1])
        right = jnp.argmax(cosine, axis=-1) == jnp.arange(size)
        return {"loss": value, **divided(aux.metrics), f"crop_to_crop_1_of_{size}": right.mean(dtype=jnp.float32)}

    def pictures(
        self, params: Tree, state: Tree, frozen: Tree, batch: Tree, samples: Sequence[Sample]
    ) -> list[Picture]:
        """Images, two of their crops, and the image that the teacher finds most like each."""
        seen = self._seen(state["teacher"]["backbone"], batch["images"])
        cosine, large, small = (np.array(x) for x in global_arrays.to_host(seen))
        np.fill_diagonal(cosine, -np.inf)
        nearest = cosine.argmax(1)
        large, small = (np.round(x * 255).astype(np.uint8) for x in (large, small))
        shown = samples[: min(self.settings.pictures, len(nearest))]
        rows = [(x.image, large[i], small[i], samples[int(nearest[i])].image) for i, x in enumerate(shown)]
        texts = [f"{x.id}: cosine {cosine[i, nearest[i]]:.3f}" for i, x in enumerate(shown)]
        return [Picture("neighbours", ("image", "global crop", "local crop", "nearest other"), rows, texts)]

    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        """Writes the teacher, without heads, as transformers has it, with image settings."""
        model = Pretrained(self.model.architecture, self.model.config, state["teacher"]["backbone"])
        with checkpoint.NewFolder(folder, force=True) as new:
            write_model(model, new)
            checkpoint.write_json(new / "preprocessor_config.json", self.image_settings)

    def _check_sizes(self) -> None:
        s, config = self.settings, self.model.config
        self.global_size = s.global_size or config.image_size
        self.local_size = s.local_size or self.global_size // 2
        for name in ("global_size", "local_size"):
            size = getattr(self, name)
            if size % config.patch_size:
                raise ValueError(f"{name} is {size}, wanted a multiple of the patch side {config.patch_size}")
        if s.ibot and not getattr(config, "mask_token", True):
            raise ValueError(f"{s.model}: has no mask token, which ibot needs; set ibot to 0")

    def _new_heads(self, mesh: Mesh) -> Tree:
        head, width = Head(self.settings.head), self.model.config.width
        names = ["head", "patch_head"] if self.settings.ibot else ["head"]

        def init(key: Array) -> Tree:
            keys = jax.random.split(key, len(names))
            return {n: head.init(k, jnp.zeros((1, width)))["params"] for n, k in zip(names, keys, strict=True)}

        key = jax.random.fold_in(jax.random.key(self.seed), 1)  # the backbone's is the seed itself
        abstract = jax.eval_shape(init, key)
        axes = {name: distillation.HEAD_AXES.tree(abstract[name]) for name in names}
        return jax.jit(init, out_shardings=sharding.shardings(abstract, axes, mesh))(key)

    def _views(self, pixels: Array, key: Array) -> tuple[Array, Array | None]:
        """Crops of all images, normalised: f32[B G, S, S, 3] and f32[B (V - G), S', S', 3], an image's together."""
        s = self.settings
        keys = jax.random.split(key, _GLOBAL + s.local_crops)
        large = [views(pixels, k, self.global_size, s.global_views) for k in keys[:_GLOBAL]]
        small = [views(pixels, k, self.local_size, s.local_views) for k in keys[_GLOBAL:]]
        return self._joined(large), self._joined(small) if small else None

    def _joined(self, crops: list[Array]) -> Array:
        joined = jnp.stack(crops, axis=1).reshape(-1, *crops[0].shape[1:])
        return self._normalised(joined * 255)

    def _normalised(self, pixels: Array) -> Array:
        return images.normalised(pixels, self.image_settings["image_mean"], self.image_settings["image_std"])

    def _backbone(
        self, params: Tree, crops: Array, patches: int, hidden: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Class tokens [B, D] and, if asked for, the patches' [B, N, D]."""
        module = self.model.architecture.module(self.model.config, self.runtime)
        features, aux = module.apply({"params": params}, crops, hidden)
        return features, aux["hidden"][:, -patches:] if patches else None

    def _head(self, params: Tree, features: Array) -> Array:
        return Head(self.settings.head, self.runtime).apply({"params": params}, features)

    def _targets(self, logits: Array, state: Tree, name: str, weights: Array | None = None) -> tuple[Array, Array]:
        """What the teacher says, f32[N, K], and the next running centre."""
        s = self.settings
        done = jnp.clip(state["updates"] / max(s.temperature_warmup, 1), 0, 1) if s.temperature_warmup else 1.0
        first, last = s.teacher_temperature
        temperature = first + (last - first) * done
        logits = jax.lax.stop_gradient(logits)
        if s.centring == "sinkhorn":
            targets = distillation.sinkhorn(logits, temperature, weights)
        else:
            targets = distillation.centred(logits, temperature, state[name])
        fresh = distillation.mean_logits(logits, weights)
        if weights is not None:  # a batch without hidden patches tells nothing
            fresh = jnp.where(weights.sum() > 0, fresh, state[name])
        return targets, s.centre_momentum * state[name] + (1 - s.centre_momentum) * fresh

    def _koleo(self, seen: Array) -> Array:
        """f32[B]: the mean over both global crops, each among those of its rank."""
        if not self.settings.koleo:
            return jnp.zeros(len(seen) // _GLOBAL)
        crops = seen.reshape(-1, _GLOBAL, seen.shape[-1])
        return sum(distillation.koleo(crops[:, i]) for i in range(_GLOBAL)) / _GLOBAL

    def _ibot(self, params: Tree, state: Tree, seen: Array, told: Array, hidden: Array) -> tuple[Array, Array]:
        """f32[B], the mean over an image's global crops of the mean over hidden patches, and the next centre."""
        k = self.settings.head.prototypes
        logits = self._head(state["teacher"]["patch_head"], told).reshape(-1, k)
        weights = hidden.astype(jnp.float32)
        targets, centre = self._targets(logits, state, "patch_centre", weights.reshape(-1))
        loss = distillation.cross_entropy(
            targets.reshape(*hidden.shape, k), self._head(params["patch_head"], seen), self.settings.temperature
        )
        crops = (loss * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
        return crops.reshape(-1, _GLOBAL).mean(1), centre

    @functools.cached_property
    def _seen(self) -> Any:
        def run(backbone: Tree, pixels: Array) -> tuple[Array, Array, Array]:
            s, keys = self.settings, jax.random.split(jax.random.key(0))
            # As a square of the usual size, whatever the images' shape.
            squares = jax.image.resize(pixels / 255, (len(pixels), self.global_size, self.global_size, 3), "linear")
            features, _ = self._backbone(backbone, self._normalised(squares * 255), 0)
            features = distillation.unit(features.astype(jnp.float32))
            large = views(pixels, keys[0], self.global_size, s.global_views)
            return features @ features.T, large, views(pixels, keys[1], self.local_size, s.local_views)

        return jax.jit(run)


def crop_losses(targets: Array, logits: Array, temperature: float) -> Array:
    """DINO's loss of each image: every crop is to say what the teacher says of the *other* global crops.

    Args:
      targets: f32[B, G, K].
      logits: f32[B, V, K], the same global crops first.
      temperature: of the student.

    Returns:
      f32[B], nats: the mean over all G (V - 1) pairs of different crops.
    """
    log_probabilities = jax.nn.log_softmax(logits / temperature, axis=-1)
    pairs = -jnp.einsum("bgk,bvk->bgv", targets, log_probabilities)
    different = 1 - jnp.eye(targets.shape[1], logits.shape[1])
    return (pairs * different).sum((1, 2)) / different.sum()


def _health(targets: Array, seen: Array, told: Array) -> dict[str, Array]:
    """Signs of collapse: all alike, or all on one prototype, or no opinion."""
    told = told[::_GLOBAL]  # one crop per image
    return {
        "target_entropy": distillation.entropy(targets).mean(),
        "mean_target_entropy": distillation.entropy(targets.mean(0)),
        "feature_spread": distillation.spread(told),
        "student_spread": distillation.spread(seen[::_GLOBAL]),
    }


def _check(s: SelfDistillationSettings) -> None:
    problems = []
    if min(s.dino, s.ibot, s.koleo) < 0 or s.dino + s.ibot == 0:
        problems.append(f"dino is {s.dino}, ibot {s.ibot}, koleo {s.koleo}; wanted none below 0, dino or ibot above")
    if s.local_crops < 0:
        problems.append(f"local_crops is {s.local_crops}, wanted at least 0")
    if s.centring not in ("sinkhorn", "mean"):
        problems.append(f"centring is {s.centring!r}, wanted 'sinkhorn' or 'mean'")
    if not 0 <= s.momentum <= 1 or s.momentum_steps < 1:
        problems.append(f"momentum is {s.momentum} over {s.momentum_steps} steps, wanted 0 to 1 over at least 1")
    if not (s.temperature > 0 and min(s.teacher_temperature) > 0):
        problems.append(f"temperatures are {s.temperature} and {s.teacher_temperature}, wanted them above 0")
    if not (0 < s.mask_ratio[0] <= s.mask_ratio[1] <= 1 and 0 <= s.mask_share <= 1):
        problems.append(f"mask_ratio is {s.mask_ratio}, mask_share {s.mask_share}, wanted parts of 1, low before high")
    if problems:
        raise ValueError("; ".join(problems))
