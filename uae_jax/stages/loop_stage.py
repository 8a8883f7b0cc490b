"""The loop as stages train it: image -> caption -> conditioning -> painting -> reward, pure and on the device.

What the cold start and both reinforcement stages share: the models, how each step of the loop is made, how a held-out
batch is judged, what is shown, what is saved. Each of them adds what it does with a reward.

Letters: B images, G captions or paintings of each, R = B G rows, N tokens of a caption, T tokens of a text, D encoder
width, H/W image height and width, h/w latent height and width, Z latent channels.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uae_jax import batching
from uae_jax.data.prompts import CAPTION_QUESTION
from uae_jax.data.records import Sample
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.rewards import reconstruction
from uae_jax.rewards.reconstruction import DEFAULT_PARTS, Judges, Reward, RewardPart
from uae_jax.sampling import captions, conditioning, flow, painting, text
from uae_jax.sampling.captions import Frame
from uae_jax.sampling.flow import Schedule
from uae_jax.sampling.text import Generation
from uae_jax.sampling.tokens import token_sampling
from uae_jax.sampling.widths import at_width
from uae_jax.stages import images, models, questions, scene_scores, towers, uae_models, uae_towers
from uae_jax.stages.base import Parts, Picture, Stage
from uae_jax.stages.micro import in_parts, parts_within
from uae_jax.stages.towers import TowerConfig
from uae_jax.stages.uae_models import UAEParts
from uae_jax.stages.uae_towers import TextSettings, UAETowers

Array = jax.Array
Tree = Any
Interface = Literal["text", "answer_hidden"]
FROZEN = TowerConfig(mode="frozen")
LANGUAGE_LORA = TowerConfig(mode="lora", frozen=("vision/.*",))  # all linear layers of the language model
LORA = TowerConfig(mode="lora")


@dataclasses.dataclass(frozen=True)
class PaintSettings:
    """How captions are painted.

    Attributes:
      steps: of the sampler.
      guidance: classifier-free; 1 or less is off, and halves the work.
      sigma_compat: see `flow.sigmas`.
      memory_gb: of a device, for paintings under way beside the weights; more of them are painted one part after
        another.
    """

    steps: int = 10
    guidance: float = 5.0
    sigma_compat: Literal["diffusers", "exact"] = "diffusers"
    memory_gb: float = 8.0

    def __post_init__(self):
        flow.sigmas(self.steps, sigma_compat=self.sigma_compat)
        if self.memory_gb <= 0:
            raise ValueError(f"memory_gb is {self.memory_gb}, wanted more than 0")

    @property
    def guided(self) -> bool:
        return self.guidance > 1


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Settings that all stages of the loop have.

    Attributes:
      model: "new:SIZE", or a UAE folder.
      encoder, projector, decoder: what of each is trained.
      question: what the encoder is asked; "" takes the model's own.
      text: how captions become conditioning.
      interface: what crosses to the decoder: "text", the caption alone, or "answer_hidden", the encoder's states at the
        caption with the image in sight, through which information can flow around the words.
      paint: how captions are painted.
      reward: the judges and their weights; those of weight 0 are held out.
      evaluation_steps: of the sampler in evaluations; 0 takes `paint.steps`.
      scene_scores: parse captions and detect paintings in evaluations; for images of the scene world only.
      pictures: held-out images that are shown after an evaluation.
      logit_chunk: how many positions' logits exist at a time; 0 for all.
      rollout_weights: what `mesh.fsdp` splits is, for captions and paintings, sent to every chip in each pass
        ("sharded"), or once per rollout ("gathered"), which takes room for all of it, and less time.
      dtype: of activations and of what is frozen, "float32" or "bfloat16"; VAE and judges are always float32.
      save_dtype: of the weights in the result; adapters are float32.
    """

    model: str = "tiny"
    encoder: TowerConfig = FROZEN
    projector: TowerConfig = FROZEN
    decoder: TowerConfig = FROZEN
    question: str = ""
    text: TextSettings = TextSettings()
    interface: Interface = "text"
    paint: PaintSettings = PaintSettings()
    reward: tuple[RewardPart, ...] = DEFAULT_PARTS
    evaluation_steps: int = 0
    scene_scores: bool = False
    pictures: int = 8
    logit_chunk: int = 0
    rollout_weights: Literal["sharded", "gathered"] = "sharded"
    dtype: str = "float32"
    save_dtype: Literal["float32", "bfloat16"] = "float32"


class LoopStage(Stage):
    """See the module. A batch holds "images" u8[B, H, W, 3] and the question about them, see `questions.ask`."""

    Settings = LoopSettings
    needs_captions = False
    separable = True
    keep_reference = False  # whether the stage asks for the policy that it started from

    def __init__(self, settings: LoopSettings, seed: int = 0):
        super().__init__(settings, seed)
        if all(getattr(settings, name).mode == "frozen" for name in uae_towers.NAMES):
            raise ValueError("encoder, projector and decoder are all 'frozen', which leaves nothing to train")
        if settings.projector.mode == "lora":
            raise ValueError("projector.mode is 'lora', which the published layout has no place for; wanted 'full'")
        if settings.evaluation_steps < 0 or settings.pictures < 0 or settings.text.max_tokens < 1:
            raise ValueError(
                f"evaluation_steps is {settings.evaluation_steps}, pictures {settings.pictures}, text.max_tokens "
                f"{settings.text.max_tokens}; wanted at least 0, 0 and 1"
            )
        models.runtime(settings.dtype)
        towers.check_dtypes(
            {name: getattr(settings, name) for name in uae_towers.NAMES}, settings.dtype, settings.save_dtype
        )
        reconstruction.check_parts(settings.reward)
        self.parts = UAEParts(settings.model)
        uae_models.check_parts(self.parts)

    def look_for_models(self) -> None:
        uae_models.look_for(self.parts)
        reconstruction.look_for(self.settings.reward)

    def load(self, mesh: Mesh) -> Parts:
        settings = self.settings
        self.mesh = mesh
        weights = uae_models.open_uae(self.parts, self.seed, mesh)
        self.question = settings.question or uae_models.advice(weights, "caption", "prompt", CAPTION_QUESTION)
        self.decoder_config, self.vae_config = weights.decoder.config, weights.vae.config
        self.uae, params, frozen = UAETowers.start(
            weights,
            {name: getattr(settings, name) for name in uae_towers.NAMES},
            settings.text,
            mesh,
            dtype=settings.dtype,
            seed=self.seed,
            keep_reference=self.keep_reference,
        )
        self.frame = Frame.of(self.uae.prompts)
        self.judges = Judges.load(settings.reward, mesh)
        frozen["judges"] = self.judges.params
        return Parts(params, frozen, params_axes=self.uae.axes)

    def collate(self, samples: Sequence[Sample]) -> Tree:
        pixels = images.stack_images(samples)
        return {"images": pixels, **questions.ask(self.uae.prompts, self.question, pixels)}

    # -- the loop, step by step; all pure --

    def acting(self, params: Tree, frozen: Tree) -> tuple[Tree, Tree]:
        """Both as captions are written and painted by, see `LoopSettings.rollout_weights`."""
        return (params, frozen) if self.settings.rollout_weights == "sharded" else self.uae.gathered(params, frozen)

    @property
    def limit(self) -> int:
        """The most tokens that a caption is written in, with the one that ends it."""
        return self.settings.text.max_tokens + 1

    def prompts(self, batch: Tree) -> Prompts:
        """The questions of a batch, images included."""
        return questions.prompts_of(batch, self.uae.prompts)

    def write(self, variables: Tree, prompts: Prompts, keys: Array, temperature: float) -> Generation:
        """Captions: R = len(keys) of them, G side by side for each prompt.

        Only a temperature shapes the draw, and that they are text: what a decoder might be told by other tokens, which
        are lost where captions are written out, would be learnt in vain.
        """
        return text.generate(
            self.uae.towers["encoder"].module,
            variables,
            prompts,
            keys,
            token_sampling(temperature, allowed=self.uae.prompts.answer_ids),
            stop_ids=self.uae.prompts.stop_ids,
            pad_id=self.uae.prompts.pad_id,
            max_new_tokens=self.limit,
        )

    def tell(self, params: Tree, frozen: Tree, prompts: Prompts, written: Generation) -> tuple[Array, Array]:
        """What the encoder makes of captions: hidden states [R, T, D], and how many the decoder sees, i32[R]."""
        if self.settings.interface == "answer_hidden":
            variables = self.uae.reader_variables(params, frozen)
            module = self.uae.towers["encoder"].module
            hidden = conditioning.answer_hidden_states(module, variables, prompts, written.tokens, written.lengths)
            return hidden, written.lengths
        rows = captions.texts(self.frame, written, self.uae.negative_length)
        return self.uae.read(params, frozen, rows), rows["lengths"]

    def noise(self, key: Array, batch: Tree) -> Array:
        """One initial latent for each image: f32[B, h, w, Z]."""
        shape = self.uae.latent_shape(batch["images"])
        return flow.initial_noise(jax.random.split(key, batch["images"].shape[0]), shape)

    def paint(
        self, params: Tree, frozen: Tree, schedule: Schedule, hidden: Array, lengths: Array, noise: Array
    ) -> Array:
        """Paints R texts by the ODE, part by part: f32[R, H, W, 3] in [0, 1].

        Args:
          schedule: without noise.
          hidden, lengths: as `tell` returns them.
          noise: f32[R, h, w, Z].
        """
        variables = self.uae.variables("decoder", params, frozen)

        def some(rows: Tree) -> Array:
            hidden, lengths, noise = rows
            conditions = self.uae.conditions(params, frozen, hidden, lengths, self.settings.paint.guided)
            velocity = self.uae.velocity(variables, frozen, schedule, conditions, self.settings.paint.guidance)
            final, _ = flow.sample(velocity, noise, schedule)
            return painting.to_unit(self.uae.decode(frozen, final))

        parts = self.painting_parts(noise.shape)
        return at_width(lambda told: in_parts(some, (told, lengths, noise), parts), hidden, lengths)

    def painting_parts(self, latents: tuple[int, ...]) -> int:
        """In how many parts latents [R, h, w, Z] are painted, one after another, within `memory_gb` of each device."""
        paint = self.settings.paint
        need = batching.paint_bytes(self.decoder_config, self.vae_config, latents[1:], paint.guided, flash=False)
        return parts_within(latents[0], batching.rows_within(paint.memory_gb * 1e9, need), self.mesh)

    def reward(self, frozen: Tree, originals: Array, painted: Array) -> Reward:
        """Compares u8[B, H, W, 3] with f32[R, H, W, 3] in [0, 1], G = R / B paintings side by side for each."""
        group = painted.shape[0] // originals.shape[0]
        reference = originals.astype(jnp.float32) / 255
        seen = self.judges.look(frozen["judges"], reference)
        many = jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), (seen, reference))
        return self.judges.compare(frozen["judges"], *many, painted)

    # -- held-out batches --

    def evaluate(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> dict[str, Array]:
        """Captions greedily, paints by the ODE from fixed noise, asks every judge."""
        settings, prompts = self.settings, self.prompts(batch)
        params, frozen = self.acting(params, frozen)
        keys = jax.random.split(key, batch["images"].shape[0])
        written = self.write(self.uae.variables("encoder", params, frozen), prompts, keys, 0.0)
        hidden, lengths = self.tell(params, frozen, prompts, written)
        schedule = self.schedule(settings.evaluation_steps or settings.paint.steps)
        painted = self.paint(params, frozen, schedule, hidden, lengths, self.noise(jax.random.fold_in(key, 1), batch))
        reward = self.reward(frozen, batch["images"], painted)
        scores = {f"score/{name}": value.mean() for name, value in reward.parts.items()}
        return {
            "unified": reconstruction.unified(reward.parts).mean(),
            "reward": reward.total.mean(),
            **scores,
            "caption_tokens": written.lengths.mean(dtype=jnp.float32),
            "truncated": (~written.stopped).mean(dtype=jnp.float32),
            "written": written.tokens,
            "written_lengths": written.lengths,
            "painted": jnp.round(painted * 255).astype(jnp.uint8),
        }

    def judge(self, outputs: dict[str, np.ndarray], samples: Sequence[Sample]) -> dict[str, float]:
        said = self._said(outputs)
        metrics = {"caption_words": float(np.mean([len(caption.split()) for caption in said]))}
        if self.settings.scene_scores:
            metrics |= scene_scores.judge([sample.image for sample in samples], said, outputs["painted"])
        return metrics

    def drawn(self, outputs: dict[str, np.ndarray], samples: Sequence[Sample]) -> list[Picture]:
        shown = samples[: self.settings.pictures]
        if not shown:
            return []
        rows = [[sample.image, painted] for sample, painted in zip(shown, outputs["painted"], strict=False)]
        return [Picture("reconstructions", ("original", "painted"), rows, self._said(outputs)[: len(shown)])]

    def _said(self, outputs: dict[str, np.ndarray]) -> list[str]:
        pairs = zip(outputs["written"], outputs["written_lengths"], strict=True)
        return [self.uae.prompts.decode(tokens[:length]) for tokens, length in pairs]

    def schedule(self, steps: int, **settings: Any) -> Schedule:
        """Noise levels with the model's shift; by default an ODE's."""
        return self.uae.schedule(steps, sigma_compat=self.settings.paint.sigma_compat, **settings)

    def save(self, params: Tree, state: Tree, frozen: Tree, folder: Path) -> None:
        changed = self.uae.finished(params, frozen)
        dtype = self.settings.save_dtype
        uae_models.save_uae(self.parts, self.seed, self.mesh, changed, folder, dtype, self.advised())

    def advised(self) -> dict[str, dict[str, Any]]:
        """What the result is to say of how it wants to be used, see `uae_models.save_uae`."""
        return {}


def named(values: Array, fine: Array) -> Array:
    """Per-sample losses f32[B] that are no number exactly where a sample is to blame: NaN where bool[B] is False."""
    return jnp.where(fine, jnp.nan_to_num(values, posinf=0.0, neginf=0.0), jnp.nan)
