"""What a step takes of a chip's memory, in closed form.

State, frozen weights and batch are exact: they are counted shard by shard. Gradients, activations and what is under way
beside them are estimates, with constants that were read off what the TPU compiler makes of the decoder; tests hold the
whole to its figures for `pretrain` and `understanding_for_gen`, within 10%.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax import batching
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.parallel.sharding import is_stacked
from uae_jax.plan import splitting
from uae_jax.plan.splitting import Split
from uae_jax.plan.staged import Staged, chip_bytes, is_split
from uae_jax.plan.work import Run
from uae_jax.sampling.scoring import chunks
from uae_jax.stages.towers import TowerConfig

# In widths per token:
AT_WORK = 34.0  # what the layer that is at work holds, forwards and backwards
KEPT = {"none": 22.0, "dots": 12.0, "full": 1.0}  # what every other layer keeps for its way back, by remat
# Of these, what attention is given and gives, and all else within a layer that `tensor` cuts, the MLP's hidden widths
# above all. (Compiled for eight CPU devices, layers kept 0.32 by sequence=4 and 0.34 by tensor=4; here 0.32 and 0.39.)
IN_ATTENTION = {"none": 4.0, "dots": 3.0, "full": 0.0}
HIDDEN = {"none": 14.0, "dots": 4.0, "full": 0.0}
_AT_WORK_IN = (8.0, 16.0)  # with their gradients
_BLOCK = 8.0  # of a residual block of the VAE: its arrays at full size that the way back needs
# Of one in float32, where the whole decoding half is on its way back: two results of convolutions, and what these were
# given, which a TPU rounds to bfloat16. The block at work has gradients beside them.
_BLOCK_FLOAT32, _BLOCK_AT_WORK = 3.0, 4.0


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      parameters, optimiser, ema, state: of the training state; `state` is the stage's own.
      frozen: weights that are not trained.
      batch: of one step.
      gradients: and their sum over micro-batches, where there are several.
      copies: of weights, in the dtype of computation or in another layout.
      per_sample: activations of one sample of a micro-batch.
      samples: of a micro-batch on one chip.
      rollout: what comes before gradients, at most; it is over when they begin.
    """

    parameters: int
    optimiser: int
    ema: int
    state: int
    frozen: int
    batch: int
    gradients: float
    copies: float
    per_sample: float
    samples: int
    rollout: float

    @property
    def arguments(self) -> int:
        """What a step is given."""
        return self.parameters + self.optimiser + self.ema + self.state + self.frozen + self.batch

    @property
    def activations(self) -> float:
        return self.per_sample * self.samples

    @property
    def peak(self) -> float:
        """The most that is in use at a time."""
        return self.arguments + max(self.gradients + self.copies + self.activations, self.rollout)

    def largest(self, limit: float, correction: float = 0.0) -> int:
        """The largest micro-batch on a chip whose peak is within a limit; 0 if none is.

        Args:
          limit: bytes.
          correction: by how much the real peak exceeds `peak`.
        """
        room = limit - self.arguments - correction
        if room < self.rollout:
            return 0
        return max(int((room - self.gradients - self.copies) // self.per_sample), 0)


def estimate(staged: Staged) -> Memory:
    """The memory of a stage's step.

    Raises:
      ValueError: if there are no closed forms of a stage.
    """
    state, frozen, batch = staged.placed(staged.mesh)
    experiment, mesh = staged.experiment, staged.mesh
    run = Run(staged)
    chips = mesh.shape["data"] * mesh.shape["fsdp"]
    parameters = chip_bytes(state.params)
    several = 1 + (experiment.accumulate > 1)
    return Memory(
        parameters=parameters,
        optimiser=chip_bytes(state.moments),
        ema=chip_bytes(state.ema),
        state=chip_bytes((state.stage, state.step, state.key, state.nonfinite_in_a_row)),
        frozen=chip_bytes(frozen),
        batch=chip_bytes(batch),
        gradients=several * parameters,
        copies=_cast(state.params, staged.dtype) + _laid_out_anew(run, frozen),
        per_sample=_per_sample(run),
        samples=experiment.batch_size // (chips * experiment.accumulate * staged.stage.updates),
        rollout=_rollout(run, state.params, frozen, chips),
    )


def transformer(tokens: float, width: int, layers: int, remat: str, itemsize: int, cut: Split | None = None) -> float:
    """Activations of one sample in a stack of layers that a gradient flows through, or what `cut` leaves a chip."""
    widths = layers * _cut(KEPT[remat], IN_ATTENTION[remat], HIDDEN[remat], cut) + _cut(AT_WORK, *_AT_WORK_IN, cut)
    return widths * tokens * width * itemsize


def _cut(widths: float, attention: float, hidden: float, cut: Split | None) -> float:
    """What a chip holds of widths per token, of which some are attention's, and some hidden widths."""
    if cut is None:
        return widths
    return (widths - attention - hidden + hidden / cut.tensor) * cut.tokens + attention * cut.held


def vae_blocks(config: AutoencoderKLConfig, height: int, width: int, extra: int) -> float:
    """Numbers of one image in a half of the VAE that a gradient flows through; `extra` blocks at each resolution."""
    total, pixels = 0.0, height * width
    for channels in config.block_out_channels:
        total += _BLOCK * (config.layers_per_block + extra) * pixels * channels
        pixels //= 4
    return total


def _cast(params: Any, dtype: Any) -> float:
    """Stacks of trained weights are cast as a whole, before the loop over their layers."""
    itemsize = jnp.dtype(dtype).itemsize
    if itemsize == 4:
        return 0.0
    paths = jax.tree_util.tree_leaves_with_path(params)
    stacks = [leaf for path, leaf in paths if is_stacked(jax.tree_util.keystr(path, simple=True, separator="/"))]
    return chip_bytes(stacks) * itemsize / 4


def _laid_out_anew(run: Run, frozen: Any) -> float:
    """What the decoder has frozen and the compiler copies before a loop over denoising steps that has gradients.

    It is all that is split over chips, as it is gathered in another layout.
    """
    if run.staged.experiment.stage != "understanding_for_gen":
        return 0.0
    return float(sum(chip_bytes(leaf) for leaf in jax.tree.leaves(frozen["decoder"]) if is_split(leaf, "fsdp")))


def _per_sample(run: Run) -> float:
    name = run.staged.experiment.stage
    if name not in _SAMPLES:
        raise ValueError(f"stage {name!r} has no closed forms; there are some of {', '.join(_SAMPLES)}")
    return _SAMPLES[name](run)


def _encoder(run: Run, config: TowerConfig, text: Any, tokens: float) -> float:
    cut = splitting.split(splitting.encoder(text, int(tokens), 1), run.staged.mesh.shape)
    return transformer(tokens, text.width, text.depth, config.remat, run.itemsize, cut)


def _decoder(run: Run, tokens: int, rows: int) -> float:
    """Of `rows` passes side by side."""
    config = run.tower("decoder").config
    remat = run.settings.decoder.remat
    cut = splitting.split(splitting.decoder(config, (run.patches, tokens), 1), run.staged.mesh.shape)
    return rows * transformer(run.patches + tokens, config.width, config.num_layers, remat, run.itemsize, cut)


def _pretrain(run: Run) -> float:
    tokens = (run.batch["context"] if "context" in run.batch else run.batch["tokens"]).shape[1]
    total = _decoder(run, tokens, 1)
    if run.settings.encoder.mode != "frozen":
        total += _encoder(run, run.settings.encoder, run.encoder.text, tokens)
    return total


def _cold_start(run: Run) -> float:
    s = run.settings
    tokens = run.asked + run.new if s.interface == "answer_hidden" else run.told
    total = _encoder(run, s.encoder, run.encoder.text, tokens) if s.encoder.mode != "frozen" else 0.0
    config = run.stage.uae.vae_config
    widest = max(run.side[0] * run.side[1] * channels for channels in config.block_out_channels[:2])  # at full size
    vae = vae_blocks(config, *run.side, extra=1) * _BLOCK_FLOAT32 / _BLOCK + _BLOCK_AT_WORK * widest
    vae *= 4 / _sharing(run)  # float32, and all of it on the way back
    return total + max(_decoder(run, run.told, run.branches), vae)


def _gen_for_understanding(run: Run) -> float:
    s, text = run.settings, run.encoder.text
    rows = _encoder(run, s.encoder, text, run.asked + run.new)
    _, positions = chunks(run.new, s.logit_chunk)
    logits = 3 * 4 * text.vocab * positions  # themselves, softmax, gradient
    return s.group * (rows + logits)


def _understanding_for_gen(run: Run) -> float:
    """The decoder's last layer is in no stack: the compiler makes gradients of its adapters late, and keeps what they
    are made of. It leaves the text as it is, so its tokens are the patches."""
    s, config = run.settings, run.tower("decoder").config
    rows = s.group * (run.branches if s.learn_negative else 1)
    last = KEPT["none"] * run.patches * config.width * run.itemsize
    return _decoder(run, run.told, rows) + rows * last


def _caption_sft(run: Run) -> float:
    s, text = run.settings, run.stage.tower.config.text
    tokens = run.batch["tokens"].shape[1]
    _, positions = chunks(tokens, s.logit_chunk)
    logits = 3 * 4 * text.vocab * positions
    vision = run.stage.tower.config.vision
    seen = transformer(run.batch["position"].shape[1], vision.width, vision.depth, s.encoder.remat, run.itemsize)
    return _encoder(run, s.encoder, text, tokens) + logits + seen


def _region_words(run: Run) -> float:
    config = run.stage.tower.config
    patches = run.batch["asked/position"].shape[1]
    total = transformer(patches, config.vision.width, config.vision.depth, "none", run.itemsize)
    if run.settings.read_by == "language":
        total += transformer(run.asked, config.text.width, config.text.depth, "none", run.itemsize)
    return total + 3 * 4 * config.text.vocab * run.batch["words"].shape[1]


def _autoencoder(run: Run) -> float:
    config, remat = run.stage.model.config, run.settings.remat
    both = vae_blocks(config, *run.side, extra=0) + vae_blocks(config, *run.side, extra=1)
    return run.itemsize * both * (1 if remat == "none" else 2 / _BLOCK) / _sharing(run)


def _sharing(run: Run) -> int:
    """Chips that share one place of the batch: the VAE splits images over `tensor` and `sequence`, too."""
    return splitting.image_parts(run.images // run.micro, run.staged.mesh)


def _contrastive(run: Run) -> float:
    config, remat = run.stage.model.config, run.settings.remat
    total = transformer(config.vision.tokens, config.vision.width, config.vision.depth, remat, run.itemsize)
    return total + transformer(run.batch["tokens"].shape[1], config.text.width, config.text.depth, remat, run.itemsize)


def _self_distillation(run: Run) -> float:
    s, stage, config = run.settings, run.stage, run.stage.model.config
    tokens = 2 * (stage.global_size // config.patch_size) ** 2
    tokens += s.local_crops * (stage.local_size // config.patch_size) ** 2
    depth = getattr(config, "layers", None) or config.depth
    return transformer(tokens, config.width, depth, s.remat, run.itemsize)


_SAMPLES = {
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


def _rollout(run: Run, params: Any, frozen: Any, chips: int) -> float:
    """What writing captions and painting them takes, whichever is more, beside weights that are gathered for both."""
    name = run.staged.experiment.stage
    if name not in ("gen_for_understanding", "understanding_for_gen"):
        return 0.0
    s, text = run.settings, run.encoder.text
    images = -(-run.images // chips)
    written = images * (s.group if name == "gen_for_understanding" else 1)
    slots = run.asked + run.new
    cache = 2 * text.depth * slots * text.kv_heads * text.head_width * run.itemsize
    layers = chip_bytes(frozen["encoder"]["params"].get("language", {}).get("layers", {}))
    captions = written * (2 * cache + 12 * text.vocab) + layers  # decoding takes the stack apart, which copies it
    latent = run.stage.uae.latent_shape(run.batch["images"])
    rows = -(-images * s.group // run.parts(s.group))
    decoder, vae = run.tower("decoder").config, run.stage.uae.vae_config
    painting = rows * batching.paint_bytes(decoder, vae, latent, s.paint.guided, flash=True)
    whole = 0.0
    if s.rollout_weights == "gathered":
        towers = [tree.get(name, {}) for tree in (params, frozen) for name in run.stage.uae.towers]
        whole = gathered_bytes(towers)
    return whole + max(captions, painting)


def gathered_bytes(tree: Any) -> float:
    """Bytes on one chip of copies of weights that are whole but for the axis "tensor", of those that are split more."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        if is_split(leaf, "fsdp"):
            parts = leaf.sharding.mesh.shape["tensor"] if is_split(leaf, "tensor") else 1
            total += leaf.size * leaf.dtype.itemsize / parts
    return total
