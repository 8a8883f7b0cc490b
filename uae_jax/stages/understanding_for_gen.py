"""Stage `understanding_for_gen`: Flow-GRPO on the decoder; the paper's last stage.

The frozen encoder writes a caption of each image; the decoder paints each caption G times along noisy steps; a step of
a painting that looks more like the image than its siblings is made more likely (Liu et al. 2025, arXiv 2505.05470). Or,
by "nft", velocities towards good paintings are preferred to those towards bad ones, without any noise (2509.16117).

Letters: B images, G paintings of each, R = B G rows, T tokens of a text, D encoder width, W trained steps, h/w latent
height and width, Z latent channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uae_jax.averages import divided
from uae_jax.data.records import Sample
from uae_jax.rl import diffusion, surrogate
from uae_jax.rl.advantages import group_advantages
from uae_jax.sampling import flow, painting
from uae_jax.sampling.conditioning import Conditioning
from uae_jax.sampling.flow import Schedule
from uae_jax.sampling.widths import at_width
from uae_jax.stages import draws, flow_matching, painted_text
from uae_jax.stages.base import Aux, Parts
from uae_jax.stages.flow_grpo_settings import UnderstandingForGenSettings, check
from uae_jax.stages.loop_stage import LoopStage, named
from uae_jax.stages.micro import in_parts, of_later_updates

Array = jax.Array
Tree = Any
Conditions = tuple[Conditioning, Conditioning | None]


class UnderstandingForGen(LoopStage):
    """See the module. `prepare` makes, of each image: "hidden" [B, T, D] and "length" i32[B] of its caption,
    "advantage" and "reward" f32[B, G]; for "nft" "x0" f32[B, G, h, w, Z]; for "grpo" "path" f32[B, G, W + 1, h w Z],
    "old" f32[B, G, W], "first" i32[B], the number of the first trained step, "before" bool[B], whether the pass that
    trains is itself the replay, nothing having been learnt since, and, with `guard`, "means" like "path" where they are
    needed for other rows."""

    Settings = UnderstandingForGenSettings
    keep_reference = True

    def __init__(self, settings: UnderstandingForGenSettings, seed: int = 0):
        check(settings)
        super().__init__(settings, seed)
        self.updates = settings.updates
        self.needs_captions = settings.captions == "data"

    def load(self, mesh: Mesh) -> Parts:
        parts = super().load(mesh)
        if self.settings.algorithm == "nft":  # who paints: an average of the decoders so far
            parts.state = {"decoder": parts.params["decoder"]}
            parts.state_axes = {"decoder": self.uae.towers["decoder"].axes}
        return parts

    def collate(self, samples: Sequence[Sample]) -> Tree:
        batch = super().collate(samples)
        if not self.needs_captions:
            return batch
        told = [sample.caption for sample in samples]
        uae = self.uae
        rows = painted_text.tokens_of(uae.prompts, uae.rows, told, uae.negative_length, self.settings.text.token_bucket)
        return {**batch, **{f"text/{name}": value for name, value in rows.items()}}

    # -- the rollout --

    def prepare(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Tree, dict]:
        s, count = self.settings, batch["images"].shape[0]
        text_key, noise_key, step_key, window_key = jax.random.split(key, 4)
        acting = self.acting({**params, **state} if s.algorithm == "nft" else params, frozen)
        hidden, lengths, metrics = self._told(*acting, batch, text_key)
        schedule, first = self._schedule(window_key)
        start = self.noise(noise_key, batch)
        if s.same_latent:
            start = jnp.repeat(start, s.group, axis=0)
        else:
            start = flow.initial_noise(jax.random.split(noise_key, count * s.group), start.shape[1:])
        rolled = self._roll(*acting, schedule, first, hidden, lengths, start, step_key)
        reward = self.reward(frozen, batch["images"], rolled.pop("painted"))
        advantage, told = group_advantages(reward.total.reshape(count, s.group), s.advantage)
        metrics |= told | self.judges.metrics(reward.parts)
        rolled = {name: x.reshape(count, s.group, *x.shape[1:]) for name, x in rolled.items()}
        batch = {**batch, **rolled, "hidden": hidden, "length": lengths, "advantage": advantage}
        batch |= {"reward": reward.total.reshape(count, s.group), "first": jnp.broadcast_to(first, (count,))}
        batch["before"] = jnp.full(count, s.old_logprob == "replay")
        if s.algorithm == "nft":
            batch["draw"] = draws.of_rows(jax.random.fold_in(key, 1), count)
        if s.old_logprob == "replay" and s.updates > 1 and s.algorithm == "grpo":
            variables = self.uae.variables("decoder", params, frozen)
            replay = lambda rows: self._replayed(params, variables, frozen, schedule, rows)  # noqa: E731
            batch |= of_later_updates(replay, batch, s.updates, self.accumulate)
        return batch, jax.lax.stop_gradient(metrics)

    def _told(self, params: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Hidden states and lengths of each image's caption, and what is to be said of captions."""
        if self.needs_captions:
            rows = {name.removeprefix("text/"): x for name, x in batch.items() if name.startswith("text/")}
            return self.uae.read(params, frozen, rows), rows["lengths"], {"captions_cut": rows["cut"].sum()}
        prompts = self.prompts(batch)
        keys = jax.random.split(key, batch["images"].shape[0])
        encoder = self.uae.variables("encoder", params, frozen)
        written = self.write(encoder, prompts, keys, self.settings.caption_temperature)
        hidden, lengths = self.tell(params, frozen, prompts, written)
        metrics = {"caption_tokens": written.lengths.mean(dtype=jnp.float32)}
        return hidden, lengths, metrics | {"truncated": (~written.stopped).mean(dtype=jnp.float32)}

    def _schedule(self, key: Array) -> tuple[Schedule, Array]:
        """The steps of a rollout, and the number of the first that is trained."""
        s, steps = self.settings, self.settings.paint.steps
        if s.algorithm == "nft":
            return self.schedule(steps), jnp.int32(0)
        noisy = self.schedule(steps, form=s.form, noise_level=s.noise_level)
        if not s.window:
            return noisy, jnp.int32(0)
        # One window for all: within a group, paintings must differ by luck and not by where their noise was.
        first = jax.random.randint(key, (), s.window_range[0], s.window_range[1] - s.window + 1)
        return flow.windowed(noisy, first, s.window), first

    def _roll(
        self,
        params: Tree,
        frozen: Tree,
        schedule: Schedule,
        first: Array,
        hidden: Array,
        lengths: Array,
        start: Array,
        key: Array,
    ) -> dict[str, Array]:
        """Paints every caption G times, part by part; arrays have R rows."""
        s, group = self.settings, self.settings.group
        keys = jax.random.split(key, len(start))

        def some(rows: Tree) -> dict[str, Array]:
            hidden, lengths, start, keys = rows
            conditions = self.uae.conditions(params, frozen, hidden, lengths, s.paint.guided)
            variables = self.uae.variables("decoder", params, frozen)
            velocity = self.uae.velocity(variables, frozen, schedule, conditions, s.paint.guidance)
            if s.algorithm == "nft":
                final, _ = flow.sample(velocity, start, schedule)
                return {"x0": final, "painted": painting.to_unit(self.uae.decode(frozen, final))}
            final, path = flow.sample(velocity, start, schedule, keys, trajectory=True)
            latents, densities = (jnp.swapaxes(path[name], 0, 1) for name in ("latents", "logprob"))
            kept = {
                "path": _flat(jax.lax.dynamic_slice_in_dim(latents, first, s.trained_steps + 1, axis=1)),
                "old": jax.lax.dynamic_slice_in_dim(densities, first, s.trained_steps, axis=1),
            }
            if s.guard and s.old_logprob == "recorded":
                means = jnp.swapaxes(path["mean"], 0, 1)
                kept["means"] = _flat(jax.lax.dynamic_slice_in_dim(means, first, s.trained_steps, axis=1))
            return {**kept, "painted": painting.to_unit(self.uae.decode(frozen, final))}

        parts = self.painting_parts(start.shape)

        def all_rows(hidden: Array) -> dict[str, Array]:
            several = [jnp.repeat(x, group, axis=0) for x in (hidden, lengths)]
            return in_parts(some, (*several, start, keys), parts)

        return at_width(all_rows, hidden, lengths)

    # -- the loss --

    def loss(self, params: Tree, state: Tree, frozen: Tree, batch: Tree, key: Array) -> tuple[Array, Aux]:
        if self.settings.algorithm == "nft":
            rows, metrics = self._nft(params, state, frozen, batch)
        else:
            rows, metrics = self._grpo(params, frozen, batch)
        by_image = rows.reshape(batch["reward"].shape).mean(axis=1)
        fine = jnp.isfinite(batch["reward"]).all(axis=1)
        latents = batch["x0"] if self.settings.algorithm == "nft" else batch["path"]
        fine &= jnp.isfinite(latents).reshape(len(fine), -1).all(axis=1)
        return by_image.mean(), Aux(jax.lax.stop_gradient(metrics), per_example=named(by_image, fine))

    def _conditions(self, params: Tree, frozen: Tree, batch: Tree) -> Conditions:
        several = [jnp.repeat(batch[name], self.settings.group, axis=0) for name in ("hidden", "length")]
        return self.uae.conditions(params, frozen, *several, self.settings.paint.guided)

    def _velocity(self, variables: Tree, frozen: Tree, schedule: Schedule, conditions: Conditions) -> Any:
        s = self.settings
        how = {"learn_negative": s.learn_negative, "cut": True}
        return self.uae.velocity(variables, frozen, schedule, conditions, s.paint.guidance, **how)

    def _batch_schedule(self, first: Array) -> Schedule:
        """The schedule that a rollout was made with."""
        s = self.settings
        noisy = self.schedule(s.paint.steps, form=s.form, noise_level=s.noise_level)
        return flow.windowed(noisy, first, s.window) if s.window else noisy

    def _grpo(self, params: Tree, frozen: Tree, batch: Tree) -> tuple[Array, dict[str, Array]]:
        """The clipped objective of each painting, averaged over trained steps: f32[R]."""
        s, first = self.settings, batch["first"][0]
        schedule, conditions = self._batch_schedule(first), self._conditions(params, frozen, batch)
        velocity = self._velocity(self.uae.variables("decoder", params, frozen), frozen, schedule, conditions)
        reference = None
        if s.kl:
            base = self.uae.towers["decoder"].reference(frozen["decoder"])
            reference = self._velocity(base, frozen, schedule, conditions)
        latent = self.uae.latent_shape(batch["images"])
        path, old_densities = _latents(batch["path"], latent), _rows(batch["old"])
        means = _latents(batch["means"], latent) if "means" in batch else None
        advantage, own = batch["advantage"].reshape(-1), jnp.repeat(batch["before"], s.group)

        @functools.partial(jax.checkpoint, policy=painting.keep_velocities)
        def one(step: Array) -> tuple[Array, dict[str, Array]]:
            """Looks at trained step number `step`, from 0."""
            number = first + step
            x, after, old = path(step), path(step + 1), old_densities[:, step]
            v = velocity(x, number)
            mean, std = flow.transition(schedule, number, x, v)
            logprob = flow.logprob(after, mean, std)
            old = jnp.where(own, jax.lax.stop_gradient(logprob), old)
            if s.guard:  # old + the guarded log-ratio, so that the surrogate finds it as it finds any other
                old_mean = jax.lax.stop_gradient(mean)
                if means is not None:
                    old_mean = jnp.where(own[:, None, None, None], old_mean, means(step))
                logprob = old + diffusion.guarded_log_ratio(logprob - old, mean, old_mean, std)
            ones = jnp.ones_like(logprob)[:, None]
            loss, ratio = surrogate.surrogate(logprob[:, None], old[:, None], advantage, ones, s.clip)
            loss = loss[:, 0]
            if s.guard:
                loss = loss / (schedule.sigma[number] - schedule.sigma[number + 1])
            metrics = divided(surrogate.ratio_metrics(ratio, advantage, ones, s.clip))  # all parts have as many
            if reference is not None:
                v_reference = jax.lax.stop_gradient(reference(x, number))
                divergence = diffusion.step_kl(schedule, number, v, v_reference, s.kl_form)
                loss = loss + s.kl * divergence
                metrics |= {"kl": divergence.mean(), "velocity_gap": diffusion.velocity_gap(v, v_reference).mean()}
                size = [jnp.linalg.norm(x.reshape(-1)) for x in (v, v_reference)]
                metrics["velocity_growth"] = size[0] / jnp.maximum(size[1], 1e-6)  # reinforcement inflates it
            return loss, metrics

        losses, metrics = jax.lax.map(one, jnp.arange(s.trained_steps))
        by_step = {f"{name}/{i}": value[i] for name, value in metrics.items() for i in range(s.trained_steps)}
        summary = {name: value.mean() for name, value in metrics.items()}
        return losses.mean(axis=0), by_step | summary

    def _replayed(self, params: Tree, variables: Tree, frozen: Tree, schedule: Schedule, batch: Tree) -> Tree:
        """What the loss makes of a rollout's steps: "old" and, with `guard`, "means", see the class."""
        velocity = self._velocity(variables, frozen, schedule, self._conditions(params, frozen, batch))
        path, first = _latents(batch["path"], self.uae.latent_shape(batch["images"])), batch["first"][0]

        def one(step: Array) -> dict[str, Array]:
            mean, std = flow.transition(schedule, first + step, path(step), velocity(path(step), first + step))
            means = {"means": mean.reshape(len(mean), -1)} if self.settings.guard else {}
            return {"old": flow.logprob(path(step + 1), mean, std), **means}

        steps = jax.lax.map(one, jnp.arange(self.settings.trained_steps))  # [W, R, ...]
        rows = batch["path"].shape[:2]
        return {name: x.swapaxes(0, 1).reshape(*rows, *x.shape[:1], *x.shape[2:]) for name, x in steps.items()}

    def _nft(self, params: Tree, state: Tree, frozen: Tree, batch: Tree) -> tuple[Array, dict]:
        """DiffusionNFT's loss of each painting, averaged over noise levels: f32[R]."""
        s = self.settings
        x0, conditions = _rows(batch["x0"]), self._conditions(params, frozen, batch)
        good = diffusion.optimality(batch["advantage"].reshape(-1), max(s.advantage.clamp, 1.0))
        towers = self.uae.towers["decoder"]
        variables = self.uae.variables("decoder", params, frozen)
        others = {"old": towers.variables(state["decoder"], frozen["decoder"])}
        if s.kl:
            others["reference"] = towers.reference(frozen["decoder"])

        @functools.partial(jax.checkpoint, policy=painting.keep_velocities)
        def one(keys: Array) -> tuple[Array, dict[str, Array]]:
            """The loss at one noise level of each image, beside the velocities of the policies that do not learn."""
            level_keys, noise_keys = keys
            # Alike for siblings: what a velocity owes to the noise cancels in a sum weighted by their advantages.
            sigma = jax.vmap(lambda key: jax.random.uniform(key, minval=0.01, maxval=1.0))(level_keys)
            noise = flow.initial_noise(noise_keys, x0.shape[1:])
            sigma, noise = (jnp.repeat(each, s.group, axis=0) for each in (sigma, noise))
            x = flow_matching.noised(x0, noise, sigma)
            own = self._velocity_at(variables, frozen, conditions, x, sigma)
            v = {name: self._velocity_at(others[name], frozen, conditions, x, sigma) for name in others}
            v = jax.lax.stop_gradient(v)
            loss = diffusion.nft_loss(x, x0, sigma, own, v["old"], good, s.nft_beta)
            metrics = {"policy_gap": diffusion.velocity_gap(own, v["old"]).mean()}
            if s.kl:
                gap = diffusion.velocity_gap(own, v["reference"])
                loss, metrics["velocity_gap"] = loss + s.kl * gap, gap.mean()
            return loss, metrics

        keys = draws.keys(batch["draw"], 2 * s.nft_draws)
        losses, metrics = jax.lax.map(one, keys.reshape(s.nft_draws, 2, -1))
        return losses.mean(axis=0), {name: value.mean() for name, value in metrics.items()}

    def _velocity_at(self, variables: Tree, frozen: Tree, conditions: Conditions, x: Array, sigma: Array) -> Array:
        """The decoder's velocity, under guidance where paintings are, at a noise level of each row's own."""
        s, module = self.settings, self.uae.towers["decoder"].module

        def denoise(context: Array, lengths: Array, shared: Tree, x: Array, sigma: Array) -> Array:
            variables, pooled = shared
            pooled = jnp.broadcast_to(pooled, (len(x), *pooled.shape))
            return module.apply(variables, x, sigma * flow.TRAIN_STEPS, context, pooled, lengths)

        guided = painting.under_guidance(*conditions, s.paint.guidance, s.learn_negative, cut=True)
        return guided(denoise, (variables, frozen["pooled"]), x, sigma)

    def advised(self) -> dict[str, dict[str, Any]]:
        """As it was trained: what is won without guidance is not found again with it, nor the other way round."""
        return {"paint": {"guidance": self.settings.paint.guidance}}

    def after_update(self, params: Tree, state: Tree, step: Array) -> Tree:
        if self.settings.algorithm != "nft":
            return state
        rate, most = self.settings.nft_decay
        decay = jnp.minimum(rate * step, most)
        old = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state["decoder"], params["decoder"])
        return {"decoder": old}


def _rows(x: Array) -> Array:
    """[B, G, ...] -> [R, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _flat(latents: Array) -> Array:
    """[R, W, h, w, Z] -> [R, W, h w Z]: a TPU pads the last two axes, and 16 channels to 128."""
    return latents.reshape(*latents.shape[:2], -1)


def _latents(path: Array, shape: tuple[int, int, int]) -> Callable[[Array], Array]:
    """[B, G, W, h w Z] -> (step -> [R, h, w, Z]), see `_flat`."""
    rows = _rows(path)
    return lambda step: rows[:, step].reshape(-1, *shape)
