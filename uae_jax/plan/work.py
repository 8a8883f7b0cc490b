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
from uae_jax.plan import flops, splitting
from uae_jax.plan.flops import Backward, Work
from uae_jax.plan.splitting import Stack
from uae_jax.plan.staged import Staged, parameters
from uae_jax.sampling.scoring import chunks
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
      sent: how often weights that are split are sent to every chip; None for in every pass.
      stack: what passes the layers of a tower that the axes tensor and sequence are followed through; None of others.
    """

    name: str
    work: Work
    weights: str = ""
    passes: float = 0.0
    trained: bool = False
    cache: float = 0.0
    sent: float | None = None
    stack: Stack | None = None


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
    return _STAGES[name](Run(staged, flash))


def total(found: list[Phase]) -> Work:
    """Of all phases, for one image."""
    return sum((phase.work for phase in found), Work())


class Run:
    """The sizes that phases are made of."""

    def __init__(self, staged: Staged, flash: bool = True):
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

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return jax.numpy.dtype(self.staged.dtype).itemsize

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

    def through(
        self,
        name: str,
        tokens: int,
        times: float,
        back: TowerConfig | None = None,
        recomputed: int = 0,
        more: float = 0,
    ) -> Stack:
        """What passes the layers of encoder or decoder.

        Args:
          name: of the tower.
          tokens: of a text.
          times: how many texts or paintings, for an image of the batch.
          back: the tower's settings where gradients flow through it.
          recomputed: as `Backward.recomputed`.
          more: passes without a gradient besides.
        """
        forward = more + times * (1 if back is None else 1 + recomputed + (back.remat == "full"))
        backward = 0 if back is None else times
        if name == "decoder":
            return splitting.decoder(self.tower(name).config, (self.patches, tokens), forward, backward)
        text = self.tower(name).config.text
        return splitting.encoder(text, tokens, forward, backward)

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

    def judged(self, rewarded: bool = False) -> Work:
        """All judges, or those that count, on one image."""
        judges = self.stage.judges
        names = judges.rewarded if rewarded else judges.sizes
        return sum((flops.image_features(*judges.sizes[name]) for name in names if name in judges.sizes), Work())

    @property
    def branches(self) -> int:
        return 2 if self.settings.paint.guided else 1

    def parts(self, group: int) -> int:
        """How many parts a batch's paintings are made in, one after another."""
        return self.stage.painting_parts((self.images * group, *self.stage.uae.latent_shape(self.batch["images"])))

    def sent(self, times: int) -> int | None:
        """`Phase.sent` of a part of a rollout, of weights that are gathered so often for it."""
        return times if self.settings.rollout_weights == "gathered" else None

    def write(self, group: int) -> list[Phase]:
        text, prompt = self.encoder.text, self.asked
        decode = flops.text_decode(text, prompt, self.new)
        decode = Work(decode.linear * (1 + self.share("encoder")), decode.attention)
        kv = 2 * text.depth * (prompt + self.new) * text.kv_heads * text.head_width * self.itemsize
        read, passes = self.look() + self.text(prompt), self.new - 1
        each = self.through("encoder", 1, group * passes)  # a token at a time
        return [
            Phase("question read", read, "encoder", 1, sent=self.sent(1), stack=self.through("encoder", prompt, 1)),
            Phase(
                "captions written", group * decode, "encoder", passes, cache=group * kv, sent=self.sent(0), stack=each
            ),
        ]

    def tell(self, group: int) -> list[Phase]:
        """How captions reach the decoder."""
        if self.settings.interface == "answer_hidden":
            tokens, work = self.asked + self.new, self.look()
        else:
            tokens, work = self.told, Work()
        work += group * self.text(tokens)
        stack = self.through("encoder", tokens, group)
        return [Phase("captions read", work, "encoder", 1, sent=self.sent(0), stack=stack)]

    def paint(self, group: int) -> list[Phase]:
        steps, parts = self.settings.paint.steps, self.parts(group)
        painted = group * steps * self.branches * self.denoise(self.told)
        projected = group * self.branches * self.project(self.told)
        stack = self.through("decoder", self.told, group * steps * self.branches)
        return [
            Phase("paintings", painted + projected, "decoder", parts * steps, sent=self.sent(1), stack=stack),
            Phase("VAE", group * self.decode(), "vae", parts),
        ]

    def judge(self, group: int) -> list[Phase]:
        return [Phase("judges", (1 + group) * self.judged(), "judges", 2)]


def _pretrain(run: Run) -> list[Phase]:
    s, uae = run.settings, run.stage.uae
    found = []
    tokens = (run.batch["context"] if "context" in run.batch else run.batch["tokens"]).shape[1]
    if "tokens" in run.batch:
        work = run.back("encoder", s.encoder)(flops.text_layers(run.encoder.text, tokens, run.flash))
        trains = s.encoder.mode != "frozen"
        work = work if trains else run.text(tokens)
        stack = run.through("encoder", tokens, 1, s.encoder if trains else None)
        found.append(Phase("captions read", work, "encoder", run.micro * (2 if trains else 1), trains, stack=stack))
    if "images" in run.batch:
        found.append(Phase("images encoded", flops.vae_encode(uae.vae_config, *run.side), "vae", run.micro))
    flows = s.projector.mode != "frozen" or s.encoder.mode != "frozen"
    told = run.back("projector", s.projector)(run.project(tokens)) if flows else run.project(tokens)
    decoder = run.tower("decoder").config
    work = flops.sd3_denoise(decoder, run.patches, tokens) + flops.sd3_modulation(decoder)
    trained = s.decoder.mode != "frozen"
    work = told + run.back("decoder", s.decoder)(work)
    stack = run.through("decoder", tokens, 1, s.decoder)
    return [*found, Phase("decoder trained", work, "decoder", 2 * run.micro, trained, stack=stack)]


def _cold_start(run: Run) -> list[Phase]:
    s = run.settings
    carrying = s.gradient_steps or s.paint.steps
    plain = s.paint.steps - carrying
    found = [] if run.stage.needs_captions else run.write(1)
    tokens = run.asked + run.new if s.interface == "answer_hidden" else run.told
    told = flops.text_layers(run.encoder.text, tokens, run.flash)
    flows = s.encoder.mode != "frozen"
    seen = run.look() if s.interface == "answer_hidden" else Work()
    read = run.back("encoder", s.encoder)(told) if flows else run.text(run.told)
    stack = run.through("encoder", tokens, 1, s.encoder if flows else None)
    found.append(Phase("captions read", seen + read, "encoder", (2 if flows else 1) * run.micro, flows, stack=stack))
    one = flops.sd3_denoise(run.tower("decoder").config, run.patches, run.told)
    learnt = run.back("decoder", s.decoder, recomputed=1)(one)
    projected = run.back("projector", s.projector)(run.project(run.told))
    painted = run.branches * (plain * run.denoise(run.told) + carrying * learnt + projected)
    passes = run.micro * (plain + 3 * carrying)
    times = run.branches * carrying
    stack = run.through("decoder", run.told, times, s.decoder, recomputed=1, more=run.branches * plain)
    trained = s.decoder.mode != "frozen"
    found.append(Phase("paintings, and back", painted, "decoder", passes, trained, stack=stack))
    back = Backward("frozen", flash=run.flash).of(run.judged(rewarded=True))
    judges = 2 * run.judged() + back + (-1) * run.judged(rewarded=True)
    vae = Backward("frozen", flash=run.flash, recomputed=1).of(run.decode())
    return [
        *found,
        Phase("VAE, and back", vae, "vae", 3 * run.micro),
        Phase("judges, and back", judges, "judges", 3 * run.micro),
    ]


def _gen_for_understanding(run: Run) -> list[Phase]:
    s, group = run.settings, run.settings.group
    text = run.encoder.text
    rows, head = flops.text_layers(text, run.asked + run.new, run.flash), flops.text_head(text, run.new)
    count, positions = chunks(run.new, s.logit_chunk)
    scored = Backward("frozen", "full" if count > 1 else "none").of(flops.text_head(text, count * positions))
    trained = run.look() + group * (run.back("encoder", s.encoder)(rows) + scored)
    learnt = run.through("encoder", run.asked + run.new, group, s.encoder)
    again = run.through("encoder", run.asked + run.new, group)
    found = [
        *run.write(group),
        *run.tell(group),
        *run.paint(group),
        *run.judge(group),
        Phase("encoder trained", trained, "encoder", 2 * run.micro, True, stack=learnt),
    ]
    if s.kl:
        found.append(Phase("reference", run.look() + group * (rows + head), "encoder", run.micro, stack=again))
    if s.old_logprob == "replay" and s.updates > 1:
        share = (s.updates - 1) / s.updates  # the first update has its own without asking
        replay = share * (run.look() + group * (run.text(run.asked + run.new) + head))
        stack = run.through("encoder", run.asked + run.new, share * group)
        found.append(Phase("replay", replay, "encoder", s.updates - 1, stack=stack))
    return found


def _understanding_for_gen(run: Run) -> list[Phase]:
    s, group = run.settings, run.settings.group
    found = (
        [*run.write(1), *run.tell(1)]
        if s.captions == "own"
        else [Phase("captions read", run.text(run.told), "encoder", 1, stack=run.through("encoder", run.told, 1))]
    )
    found += [*run.paint(group), *run.judge(group)]
    one = flops.sd3_denoise(run.tower("decoder").config, run.patches, run.told)
    learnt = run.back("decoder", s.decoder, recomputed=1)(one)
    if run.branches > 1:
        learnt += learnt if s.learn_negative else run.denoise(run.told)
    if s.algorithm == "nft":
        steps = s.nft_draws
        others = group * steps * run.branches * (run.denoise(run.told) + (one if s.kl else Work()))
    else:
        steps = s.trained_steps
        others = group * steps * run.branches * (one if s.kl else Work())
    trained = group * steps * learnt
    times, plain = group * steps * run.branches, 0
    if run.branches > 1 and not s.learn_negative:
        times = plain = group * steps
    stack = run.through("decoder", run.told, times, s.decoder, recomputed=1, more=plain)
    found.append(Phase("decoder trained", trained, "decoder", 3 * steps * run.micro, True, stack=stack))
    if others.total:
        passed = group * steps * run.branches * (1 + bool(s.kl) if s.algorithm == "nft" else 1)
        stack = run.through("decoder", run.told, passed)
        found.append(Phase("reference", others, "decoder", steps * run.micro, stack=stack))
    if s.old_logprob == "replay" and s.updates > 1 and s.algorithm == "grpo":
        share = (s.updates - 1) / s.updates  # the first update has its own without asking
        replay = share * s.trained_steps * group * run.branches * run.denoise(run.told)
        stack = run.through("decoder", run.told, share * s.trained_steps * group * run.branches)
        found.append(Phase("replay", replay, "decoder", (s.updates - 1) * s.trained_steps, stack=stack))
    return found


def _caption_sft(run: Run) -> list[Phase]:
    s, tower = run.settings, run.stage.tower
    config, tokens = tower.config, run.batch["tokens"].shape[1]
    seen = flops.vision(config.vision, run.batch["position"].shape[1], run.batch["window"].shape[1])
    tree = run.staged.parts.params.get("lora", {})
    share = adapter_share(tower.architecture, config, tree, _LAYERS["encoder"])
    way = Backward(s.encoder.mode, s.encoder.remat, run.flash)
    direct = traverse_util.flatten_dict(run.staged.parts.params.get("params", {}), sep="/")
    adapted = traverse_util.flatten_dict(tree, sep="/")
    looking = any(path.startswith("vision/") for path in (*direct, *adapted))
    seen = way.of(seen) if looking else seen
    count, positions = chunks(tokens, s.logit_chunk)
    head = Backward("full" if s.encoder.mode == "full" else "frozen", "full" if count > 1 else "none")
    work = seen + way.of(flops.text_layers(config.text, tokens, run.flash), share)
    heads = 2 if s.keep_words else 1  # kept words are read by the same head
    work += heads * head.of(flops.text_head(config.text, count * positions))
    stack = splitting.encoder(config.text, tokens, 1 + (s.encoder.remat == "full"), 1)
    return [Phase("encoder trained", work, "encoder", 2 * run.micro, True, stack=stack)]


def _region_words(run: Run) -> list[Phase]:
    config, way = run.stage.tower.config, Backward("full", flash=run.flash)
    merged = run.batch["words"].shape[1]
    work = way.of(_looked(run, config))
    if run.settings.read_by == "vision":
        work += Backward("frozen").of(flops.text_head(config.text, merged))
    else:
        layers = flops.text_layers(config.text, run.asked, run.flash)
        work += 0.5 * layers + 0.5 * way.of(layers) + way.of(flops.text_head(config.text, merged))
    return [Phase("encoder trained", work, "encoder", 2 * run.micro, True)]


def _looked(run: Run, config: Any) -> Work:
    return flops.vision(config.vision, run.batch["asked/position"].shape[1], run.batch["asked/window"].shape[1])


def _autoencoder(run: Run) -> list[Phase]:
    config = run.stage.model.config
    work = flops.vae_encode(config, *run.side) + flops.vae_decode(config, *run.side)
    way = Backward("full", run.settings.remat, run.flash)
    return [Phase("VAE trained", way.of(work), "vae", 2 * run.micro, True)]


def _contrastive(run: Run) -> list[Phase]:
    config, way = run.stage.model.config, Backward("full", run.settings.remat, run.flash)
    work = flops.image_features(config, config.vision.image_size)
    for name in ("tokens", "short_tokens"):
        if name in run.batch:
            work += flops.clip_text(config.text, run.batch[name].shape[1])
    return [Phase("CLIP trained", way.of(work), "model", 2 * run.micro, True)]


def _self_distillation(run: Run) -> list[Phase]:
    s, stage, config = run.settings, run.stage, run.stage.model.config
    large = flops.image_features(config, stage.global_size)
    small = s.local_crops * flops.image_features(config, stage.local_size) if s.local_crops else Work()
    head = s.head
    width = config.width * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    one = Work(2 * (width + head.bottleneck * head.prototypes))
    patches = 2 * (stage.global_size // config.patch_size) ** 2 if s.ibot else 0
    way = Backward("full", s.remat, run.flash)
    student = way.of(2 * large + small) + 3 * ((2 + s.local_crops + patches) * one)
    return [
        Phase("teacher", 2 * large + (2 + patches) * one, "model", run.micro),
        Phase("student trained", student, "model", 2 * run.micro, True),
    ]


_STAGES: dict[str, Callable[[Run], list[Phase]]] = {
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
    kernels = traverse_util.flatten_dict(parameters(architecture, config), sep="/")
    weights = sum(
        leaf.size
        for path, leaf in kernels.items()
        if path.endswith("/kernel") and re.fullmatch(layers, path) and len(leaf.shape) - is_stacked(path) > 1
    )
    return sum(sizes.values()) / weights
