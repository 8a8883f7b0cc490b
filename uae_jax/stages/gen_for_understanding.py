"""Stage `gen_for_understanding`: GRPO on the encoder's captions; the paper's second stage of reinforcement.

Of each image the current encoder writes G captions; the frozen decoder paints each of them, all of an image from one
and the same initial latent; what looks more like the image than its siblings is made more likely, token by token, with
the image in sight.

Letters: B images, G captions of each, R = B G rows, N tokens of a caption, T tokens of a text, D encoder width.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from uae_jax.averages import Mean
from uae_jax.rl import surrogate, tokens
from uae_jax.rl.advantages import AdvantageConfig, group_advantages
from uae_jax.rl.surrogate import ClipConfig
from uae_jax.rl.tokens import Aggregation, KLForm, OverlongConfig
from uae_jax.sampling.scoring import TokenScores, answer_scores
from uae_jax.sampling.text import Generation
from uae_jax.stages.base import Aux
from uae_jax.stages.loop_stage import LANGUAGE_LORA, LoopSettings, LoopStage, named
from uae_jax.stages.micro import of_later_updates
from uae_jax.stages.towers import TowerConfig

Array = jax.Array
Tree = Any


@dataclasses.dataclass(frozen=True)
class GenForUnderstandingSettings(LoopSettings):
    """Settings of the stage, beside those of the loop.

    Attributes:
      group: G.
      temperature: of the captions; log-probabilities are of the same distribution, nothing else shapes it.
      updates: of the optimiser per rollout, each on a part of the images.
      old_logprob: the ratio's denominator is what was "recorded" while writing, or what a "replay" of the captions by
        the program that trains gives, which leaves ratios at exactly 1 where there is one update.
      advantage: normalisation of rewards.
      clip: of ratios.
      aggregation: how tokens are averaged, see `tokens.token_weights`.
      kl: weight of the divergence from the encoder that the stage started from; 0 does not compute it.
      kl_form: "k2" or "k3", see `tokens.token_kl`.
      learn_truncated: whether captions that were cut off count in the loss; in their group's mean they always do.
      overlong: a price on length, taken from the reward before advantages; `reward` is logged without it.
    """

    encoder: TowerConfig = LANGUAGE_LORA
    group: int = 8
    temperature: float = 1.0
    updates: int = 1
    old_logprob: Literal["recorded", "replay"] = "recorded"
    advantage: AdvantageConfig = AdvantageConfig()
    clip: ClipConfig = ClipConfig()
    aggregation: Aggregation = "token"
    kl: float = 1e-3
    kl_form: KLForm = "k2"
    learn_truncated: bool = False
    overlong: OverlongConfig = OverlongConfig()


class GenForUnderstanding(LoopStage):
    """See the module. `prepare` adds, of each image: "tokens" i32[B, G, N], "lengths" i32[B, G], "old" and "weight"
    f32[B, G, N], "advantage" and "reward" f32[B, G]."""

    Settings = GenForUnderstandingSettings
    keep_reference = True
    needs_captions = False

    def __init__(self, settings: GenForUnderstandingSettings, seed: int = 0):
        super().__init__(settings, seed)
        if (
            settings.encoder.mode == "frozen"
            or settings.projector.mode != "frozen"
            or settings.decoder.mode != "frozen"
        ):
            raise ValueError(
                f"encoder, projector and decoder have modes {settings.encoder.mode!r}, {settings.projector.mode!r} and "
                f"{settings.decoder.mode!r}; this stage trains the encoder alone, the others are 'frozen'"
            )
        if settings.group < 2 or settings.updates < 1 or settings.temperature <= 0:
            raise ValueError(
                f"group is {settings.group}, updates {settings.updates}, temperature {settings.temperature}; wanted "
                "at least 2, at least 1, and more than 0"
            )
        if settings.kl < 0 or (settings.kl and (settings.encoder.mode == "full" or settings.encoder.full)):
            raise ValueError(
                f"kl is {settings.kl} with encoder.mode {settings.encoder.mode!r} and encoder.full "
                f"{settings.encoder.full!r}; wanted 0, or mode 'lora' alone: what is trained directly has no reference"
            )
        tokens.token_kl(jnp.zeros(1), jnp.zeros(1), settings.kl_form)
        tokens.overlong_price(jnp.zeros(1, jnp.int32), self.limit, settings.overlong)
        self.updates = settings.updates

    def prepare(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Tree, dict]:
        s, count = self.settings, batch["images"].shape[0]
        text_key, noise_key = jax.random.split(key)
        prompts, acting = self.prompts(batch), self.acting(params, frozen)
        keys = jax.random.split(text_key, count * s.group)
        written = self.write(self.uae.variables("encoder", *acting), prompts, keys, s.temperature)
        hidden, lengths = self.tell(*acting, prompts, written)
        noise = jnp.repeat(self.noise(noise_key, batch), s.group, axis=0)  # siblings differ in nothing but their words
        painted = self.paint(*acting, self.schedule(s.paint.steps), hidden, lengths, noise)
        reward = self.reward(frozen, batch["images"], painted)
        advantage, metrics = self.advantages(*(x.reshape(count, s.group) for x in (reward.total, written.lengths)))
        there = (jnp.arange(written.tokens.shape[1]) < written.lengths[:, None]).astype(jnp.float32)
        learnt = there if s.learn_truncated else there * written.stopped[:, None]
        rollout = {
            "tokens": written.tokens,
            "lengths": written.lengths,
            "old": written.logprobs,
            "weight": tokens.token_weights(learnt, s.aggregation),
            "reward": reward.total,
        }
        rollout = {name: x.reshape(count, s.group, *x.shape[1:]) for name, x in rollout.items()}
        batch = {**batch, **rollout, "advantage": advantage}
        batch["before"] = jnp.full(count, s.old_logprob == "replay")
        if s.old_logprob == "replay" and s.updates > 1:
            variables = self.uae.variables("encoder", params, frozen)
            score = lambda rows: {"old": self.scores(variables, rows).logprob.reshape(rows["tokens"].shape)}  # noqa: E731
            batch |= of_later_updates(score, batch, s.updates, self.accumulate)
        metrics |= self.judges.metrics(reward.parts)
        metrics |= self._caption_metrics(written)
        return batch, jax.lax.stop_gradient(metrics)

    def advantages(self, reward: Array, lengths: Array) -> tuple[Array, dict[str, Array]]:
        """Advantages f32[B, G] of captions by reward f32[B, G], less what lengths i32[B, G] cost; and metrics."""
        s = self.settings
        price = tokens.overlong_price(lengths, self.limit, s.overlong)
        advantage, metrics = group_advantages(reward - price, s.advantage)
        metrics["reward"] = reward.mean()
        if s.overlong.price:
            metrics["overlong_price"] = price.mean()
        return advantage, metrics

    def _caption_metrics(self, written: Generation) -> dict[str, Array]:
        lengths = written.lengths.astype(jnp.float32)
        return {"caption_tokens": lengths.mean(), "truncated": (~written.stopped).mean(dtype=jnp.float32)}

    def scores(self, variables: Tree, batch: Tree) -> TokenScores:
        """What an encoder thinks of the captions of a rollout, the image in sight: [R, N] each."""
        rows = {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in ("tokens", "lengths")}
        return answer_scores(
            self.uae.towers["encoder"].module,
            variables,
            self.prompts(batch),
            rows["tokens"],
            rows["lengths"],
            self.settings.logit_chunk,
            self.settings.temperature,
            self.uae.prompts.answer_ids,
        )

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        s = self.settings
        logprob, _, entropy = self.scores(self.uae.variables("encoder", params, frozen), batch)
        weight, recorded = (batch[name].reshape(logprob.shape) for name in ("weight", "old"))
        mask, advantage = (weight > 0).astype(jnp.float32), batch["advantage"].reshape(-1)
        own = jnp.repeat(batch["before"], s.group)[:, None]
        old = jnp.where(own, jax.lax.stop_gradient(logprob), recorded)
        loss, ratio = surrogate.surrogate(logprob, old, advantage, mask, s.clip)
        metrics = surrogate.ratio_metrics(ratio, advantage, mask, s.clip)
        metrics["entropy"] = Mean.of(entropy, mask)
        if s.kl:
            reference = self.scores(self.uae.towers["encoder"].reference(frozen["encoder"]), batch).logprob
            loss = loss + s.kl * tokens.token_kl(logprob, reference, s.kl_form)
            # k3 is reported whatever is trained with: it is unbiased and never negative.
            metrics["kl"] = Mean.of(tokens.token_kl(logprob, reference, "k3"), mask)
        rows = jnp.where(mask > 0, weight * loss, 0.0).sum(axis=1).reshape(batch["reward"].shape)
        fine = jnp.isfinite(batch["reward"]).all(axis=1)
        fine &= jnp.isfinite(jnp.where(mask > 0, logprob, 0.0)).all(axis=1).reshape(rows.shape).all(axis=1)
        return rows.mean(), Aux(jax.lax.stop_gradient(metrics), per_example=named(rows.mean(axis=1), fine))
