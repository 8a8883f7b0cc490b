"""What one step of each stage computes: its phases, the work of each for one image, and how often weights are read.

The unit of work is an image of the batch; what a stage does G times for each (captions, paintings) counts G times.

Letters: G captions or paintings of an image, N tokens of a caption, T tokens of a text, P patches.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
from flax import traverse_util

from uae_jax.parallel.sharding import is_stacked
from uae_jax.plan import flops
from uae_jax.plan.flops import Backward, Work
from uae_jax.plan.staged import Staged
from uae_jax.stages.towers import Tower, TowerConfig
from uae_jax.weights.architecture import Architecture

# Layers that all tokens pass; others (modulation, embedders) see one vector an image.
_LAYERS = {"encoder": r"language/layers/.*", "decoder": r"(layers_\d+|last)/.*", "projector": r".*"}


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a step.

    Attributes:
      name: for the report.
      work: for one image of the batch.
      weights: whose are read: a tower's name, "vae" or "judges"; "" where it does not matter.
      passes: over these weights, in one step, on every chip.
      trained: whether their gradient is among what is computed.
      cache: bytes per image that every pass reads besides the weights, as decoding does.
    """

    name: str
    work: Work
    weights: str = ""
    passes: float = 0.0
    trained: bool = False
    cache: float = 0.0


def phases(staged: Staged, flash: bool = True) -> list[Phase]:
    """The phases of a stage's step.

    Args:
      staged: the stage.
      flash: whether attention runs in flash kernels, which skip what a causal mask hides, and compute logits again on
        the way back.

    Raises:
      ValueError: if there are no closed forms of a stage.
    """
    name = staged.experiment.stage
    if name not in _STAGES:
        raise ValueError(f"stage {name!r} has no closed forms; there are some of {', '.join(_STAGES)}")
    return _STAGES[name](_Loop(staged, flash))


def total(found: list[Phase]) -> Work:
    """Of all phases, for one image."""
    return sum((phase.work for phase in found), Work())


class _Loop:
    """Shorthand for the sizes that phases are made of."""

    def __init__(self, staged: Staged, flash: bool):
        self.staged, self.stage, self.flash = staged, staged.stage, flash
        self.settings, self.batch = staged.experiment.settings, staged.batch
        self.images = staged.experiment.batch_size
        self.micro = staged.experiment.accumulate * staged.stage.updates  # micro-batches of a step

    @property
    def side(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if "latents" in self.batch:
            return tuple(x * self.stage.uae.vae_config.downsampling for x in self.batch["latents"].shape[1:3])
        return self.batch["images"].shape[1:3]

    def tower(self, name: str) -> Tower:
        return self.stage.uae.towers[name]

    @property
    def encoder(self) -> Any:
        return self.tower("encoder").config

    @property
    def patches(self) -> int:
        """Of the decoder."""
        scale = self.stage.uae.vae_config.downsampling * self.tower("decoder").config.patch_size
        return self.side[0] * self.side[1] // scale**2

    def back(self, name: str, config: TowerConfig, recomputed: int = 0) -> Callable[[Work], Work]:
        """Work of a tower, forward -> forward and backward."""
        way = Backward(config.mode, config.remat, self.flash, recomputed)
        tree = self.staged.parts.params.get(name, {}).get("lora", {})
        share = adapter_share(self.tower(name).architecture, self.tower(name).config, tree, _LAYERS[name])
        return lambda work: way.of(work, share)

    def share(self, name: str) -> float:
        tree = self.staged.parts.params.get(name, {}).get("lora") or self.staged.parts.frozen[name].get("lora", {})
        return adapter_share(self.tower(name).architecture, self.tower(name).config, tree, _LAYERS[name])

    def denoise(self, tokens: int) -> Work:
        """One pass of the decoder over one painting, its adapter included."""
        work = flops.sd3_denoise(self.tower("decoder").config, self.patches, tokens)
        return Work(work.linear * (1 + self.share("decoder")), work.attention)

    def text(self, tokens: float) -> Work:
        """One pass of the encoder's layers, its adapter included."""
        work = flops.text_layers(self.encoder.text, tokens, self.flash)
        return Work(work.linear * (1 + self.share("encoder")), work.attention)

    def project(self, tokens: int) -> Work:
        return flops.projector(self.tower("projector").config, tokens)

    def decode(self) -> Work:
        return flops.vae_decode(self.stage.uae.vae_config, *self.side)

    # -- of stages that caption --

    @property
    def asked(self) -> int:
        """Tokens of the question, the image's among them."""
        return self.batch["asked/tokens"].shape[1]

    @property
    def new(self) -> int:
        """N, with the one that ends a caption."""
        return self.settings.text.max_tokens + 1

    @property
    def told(self) -> int:
        """T, of a caption as the decoder is told of it."""
        if self.settings.interface == "answer_hidden":
            return self.new
        return max(self.stage.frame.length + self.new, self.stage.uae.negative_length)

    def look(self) -> Work:
        """The encoder's vision tower."""
        windows = self.batch["asked/window"].shape[1]
        return flops.vision(self.encoder.vision, self.batch["asked/position"].shape[1], windows)

    def judged(self) -> Work:
        """All judges, on one image."""
        return sum((flops.image_features(*sizes) for sizes in self.stage.judges.sizes.values()), Work())

    @property
    def branches(self) -> int:
        return 2 if self.settings.paint.guided else 1

    def parts(self, group: int) -> int:
        """How many parts a batch's paintings are made in, one after another."""
        rows, latent = self.images * group, self.stage.uae.latent_shape(self.batch["images"])
        size = self.stage.rows_at_a_time((rows, *latent))
        return next(p for p in range(-(-rows // size), rows + 1) if rows % p == 0)

    def write(self, group: int) -> list[Phase]:
        text, prompt = self.encoder.text, self.asked
        decode = flops.text_decode(text, prompt, self.new)
        decode = Work(decode.linear * (1 + self.share("encoder")), decode.attention)
        kv = 2 * text.depth * (prompt + self.new) * text.kv_heads * text.head_width * _itemsize(self.settings)
        read = self.look() + self.text(prompt)
        return [
            Phase("question read", read, "encoder", 1),
            Phase("captions written", group * decode, "encoder", self.new - 1, cache=group * kv),
        ]

    def tell(self, group: int) -> list[Phase]:
        """How captions reach the decoder."""
        if self.settings.interface == "answer_hidden":
            work = self.look() + group * self.text(self.asked + self.new)
        else:
            work = group * self.text(self.told)
        return [Phase("captions read", work, "encoder", 1)]

    def paint(self, group: int) -> list[Phase]:
        steps, parts = self.settings.paint.steps, self.parts(group)
        painted = group * steps * self.branches * self.denoise(self.told)
        projected = group * self.branches * self.project(self.told)
        return [
            Phase("paintings", painted + projected, "decoder", parts * steps),
            Phase("VAE", group * self.decode(), "vae", parts),
        ]

    def judge(self, group: int) -> list[Phase]:
        return [Phase("judges", (1 + group) * self.judged(), "judges", 2)]


def _pretrain(l: _Loop) -> list[Phase]:
    s, uae = l.settings, l.stage.uae
    found = []
    tokens = (l.batch["context"] if "context" in l.batch else l.batch["tokens"]).shape[1]
    if "tokens" in l.batch:
        work = l.back("encoder", s.encoder)(flops.text_layers(l.encoder.text, tokens, l.flash))
        trains = s.encoder.mode != "frozen"
        work = work if trains else l.text(tokens)
        found.append(Phase("captions read", work, "encoder", l.micro * (2 if trains else 1), trains))
    if "images" in l.batch:
        found.append(Phase("images encoded", flops.vae_encode(uae.vae_config, *l.side), "vae", l.micro))
    flows = s.projector.mode != "frozen" or s.encoder.mode != "frozen"
    told = l.back("projector", s.projector)(l.project(tokens)) if flows else l.project(tokens)
    decoder = l.tower("decoder").config
    work = flops.sd3_denoise(decoder, l.patches, tokens) + flops.sd3_modulation(decoder)
    trained = s.decoder.mode != "frozen"
    return [*found, Phase("decoder trained", told + l.back("decoder", s.decoder)(work), "decoder", 2 * l.micro, trained)]


def _cold_start(l: _Loop) -> list[Phase]:
    s = l.settings
    carrying = s.gradient_steps or s.paint.steps
    plain = s.paint.steps - carrying
    found = [] if l.stage.needs_captions else l.write(1)
    told = flops.text_layers(l.encoder.text, l.asked + l.new if s.interface == "answer_hidden" else l.told, l.flash)
    flows = s.encoder.mode != "frozen"
    seen = l.look() if s.interface == "answer_hidden" else Work()
    read = l.back("encoder", s.encoder)(told) if flows else l.text(l.told)
    found.append(Phase("captions read", seen + read, "encoder", (2 if flows else 1) * l.micro, flows))
    one = flops.sd3_denoise(l.tower("decoder").config, l.patches, l.told)
    learnt = l.back("decoder", s.decoder, recomputed=1)(one)
    projected = l.back("projector", s.projector)(l.project(l.told))
    painted = l.branches * (plain * l.denoise(l.told) + carrying * learnt + projected)
    passes = l.micro * (plain + 3 * carrying)
    found.append(Phase("paintings, and back", painted, "decoder", passes, s.decoder.mode != "frozen"))
    frozen = Backward("frozen", flash=l.flash)
    vae = Backward("frozen", flash=l.flash, recomputed=1).of(l.decode())
    return [
        *found,
        Phase("VAE, and back", vae, "vae", 3 * l.micro),
        Phase("judges, and back", l.judged() + frozen.of(l.judged()), "judges", 3 * l.micro),
    ]


def _gen_for_understanding(l: _Loop) -> list[Phase]:
    s, group = l.settings, l.settings.group
    text = l.encoder.text
    rows, head = flops.text_layers(text, l.asked + l.new, l.flash), flops.text_head(text, l.new)
    chunked = bool(s.logit_chunk) and l.new > s.logit_chunk and l.new % s.logit_chunk == 0
    scored = Backward("frozen", "full" if chunked else "none").of(head)
    trained = l.look() + group * (l.back("encoder", s.encoder)(rows) + scored)
    found = [
        *l.write(group),
        *l.tell(group),
        *l.paint(group),
        *l.judge(group),
        Phase("encoder trained", trained, "encoder", 2 * l.micro, True),
    ]
    if s.kl:
        found.append(Phase("reference", l.look() + group * (rows + head), "encoder", l.micro))
    if s.old_logprob == "replay" and s.updates > 1:
        found.append(Phase("replay", l.look() + group * (l.text(l.asked + l.new) + head), "encoder", s.updates))
    return found


def _understanding_for_gen(l: _Loop) -> list[Phase]:
    s, group = l.settings, l.settings.group
    found = [*l.write(1), *l.tell(1)] if s.captions == "own" else [Phase("captions read", l.text(l.told), "encoder", 1)]
    found += [*l.paint(group), *l.judge(group)]
    one = flops.sd3_denoise(l.tower("decoder").config, l.patches, l.told)
    learnt = l.back("decoder", s.decoder, recomputed=1)(one)
    if s.algorithm == "nft":
        looks = s.nft_draws * group
        trained, others = looks * learnt, looks * (2 * l.denoise(l.told) + (2 * one if s.kl else Work()))
        steps = s.nft_draws
    else:
        steps, branches = s.trained_steps, l.branches
        # What lies under the checkpoint is computed twice, the reference too.
        trained = steps * group * branches * learnt
        others = steps * group * branches * (2 * one if s.kl else Work())
    found.append(Phase("decoder trained", trained, "decoder", 3 * steps * l.micro, True))
    if others.total:
        found.append(Phase("reference", others, "decoder", 2 * steps * l.micro))
    if s.old_logprob == "replay" and s.updates > 1 and s.algorithm == "grpo":
        replay = s.trained_steps * group * l.branches * l.denoise(l.told)
        found.append(Phase("replay", replay, "decoder", s.updates * s.trained_steps))
    return found


def _caption_sft(l: _Loop) -> list[Phase]:
    s, tower = l.settings, l.stage.tower
    config, tokens = tower.config, l.batch["tokens"].shape[1]
    seen = flops.vision(config.vision, l.batch["position"].shape[1], l.batch["window"].shape[1])
    tree = l.staged.parts.params.get("lora", {})
    share = adapter_share(tower.architecture, config, tree, _LAYERS["encoder"])
    way = Backward(s.encoder.mode, s.encoder.remat, l.flash)
    direct = traverse_util.flatten_dict(l.staged.parts.params.get("params", {}), sep="/")
    adapted = traverse_util.flatten_dict(tree, sep="/")
    looking = any(path.startswith("vision/") for path in (*direct, *adapted))
    seen = way.of(seen) if looking else seen
    chunked = s.logit_chunk and tokens > s.logit_chunk and tokens % s.logit_chunk == 0
    head = Backward("full" if s.encoder.mode == "full" else "frozen", "full" if chunked else "none")
    work = seen + way.of(flops.text_layers(config.text, tokens, l.flash), share)
    work += head.of(flops.text_head(config.text, tokens))
    return [Phase("encoder trained", work, "encoder", 2 * l.micro, True)]


def _region_words(l: _Loop) -> list[Phase]:
    config, way = l.stage.tower.config, Backward("full", flash=l.flash)
    merged = l.batch["words"].shape[1]
    work = way.of(_looked(l, config))
    if l.settings.read_by == "vision":
        work += Backward("frozen").of(flops.text_head(config.text, merged))
    else:
        layers = flops.text_layers(config.text, l.asked, l.flash)
        work += 0.5 * layers + 0.5 * way.of(layers) + way.of(flops.text_head(config.text, merged))
    return [Phase("encoder trained", work, "encoder", 2 * l.micro, True)]


def _looked(l: _Loop, config: Any) -> Work:
    return flops.vision(config.vision, l.batch["asked/position"].shape[1], l.batch["asked/window"].shape[1])


def _autoencoder(l: _Loop) -> list[Phase]:
    config = l.stage.model.config
    work = flops.vae_encode(config, *l.side) + flops.vae_decode(config, *l.side)
    way = Backward("full", l.settings.remat, l.flash)
    return [Phase("VAE trained", way.of(work), "vae", 2 * l.micro, True)]


def _contrastive(l: _Loop) -> list[Phase]:
    config, way = l.stage.model.config, Backward("full", l.settings.remat, l.flash)
    work = flops.image_features(config, config.vision.image_size)
    for name in ("tokens", "short_tokens"):
        if name in l.batch:
            work += flops.clip_text(config.text, l.batch[name].shape[1])
    return [Phase("CLIP trained", way.of(work), "model", 2 * l.micro, True)]


def _self_distillation(l: _Loop) -> list[Phase]:
    s, stage, config = l.settings, l.stage, l.stage.model.config
    large = flops.image_features(config, stage.global_size)
    small = s.local_crops * flops.image_features(config, stage.local_size) if s.local_crops else Work()
    head = s.head
    width = config.width * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    one = Work(2 * (width + head.bottleneck * head.prototypes))
    patches = 2 * (stage.global_size // config.patch_size) ** 2 if s.ibot else 0
    way = Backward("full", s.remat, l.flash)
    student = way.of(2 * large + small) + 3 * ((2 + s.local_crops + patches) * one)
    return [
        Phase("teacher", 2 * large + (2 + patches) * one, "model", l.micro),
        Phase("student trained", student, "model", 2 * l.micro, True),
    ]


_STAGES: dict[str, Callable[[_Loop], list[Phase]]] = {
    "pretrain": _pretrain,
    "region_words": _region_words,
    "caption_sft": _caption_sft,
    "contrastive": _contrastive,
    "autoencoder": _autoencoder,
    "self_distillation": _self_distillation,
    "cold_start": _cold_start,
    "gen_for_understanding": _gen_for_understanding,
    "understanding_for_gen": _understanding_for_gen,
}


def adapter_share(architecture: Architecture, config: Any, adapter: Any, layers: str) -> float:
    """Operations of an adapter over those of the weights, in the layers whose paths match."""
    sizes = {}
    for path, leaf in traverse_util.flatten_dict(adapter, sep="/").items():
        if re.fullmatch(layers, path):
            sizes[path] = leaf.size
    if not sizes:
        return 0.0
    kernels = traverse_util.flatten_dict(architecture.abstract(config), sep="/")
    weights = sum(
        leaf.size
        for path, leaf in kernels.items()
        if path.endswith("/kernel") and re.fullmatch(layers, path) and len(leaf.shape) - is_stacked(path) > 1
    )
    return sum(sizes.values()) / weights


def _itemsize(settings: Any) -> int:
    return jax.numpy.dtype(settings.dtype).itemsize
