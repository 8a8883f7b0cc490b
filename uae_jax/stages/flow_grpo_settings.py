"""Settings of stage `understanding_for_gen`, and the presets that are known to work."""

import dataclasses
from typing import Any, Literal

from uae_jax.rl.advantages import AdvantageConfig
from uae_jax.rl.diffusion import StepKL
from uae_jax.rl.surrogate import ClipConfig
from uae_jax.sampling import flow
from uae_jax.stages.loop_stage import LORA, LoopSettings
from uae_jax.stages.towers import TowerConfig

FLOW_CLIP = ClipConfig(low=1e-4, high=1e-4)  # ratios of densities averaged over the latent are this near to 1


@dataclasses.dataclass(frozen=True)
class UnderstandingForGenSettings(LoopSettings):
    """Settings of the stage, beside those of the loop; the defaults are Flow-GRPO's (arXiv 2505.05470).

    Attributes:
      algorithm: "grpo", on the densities of noisy steps, or "nft", which contrasts velocities at any noise level and
        needs neither noise nor densities (arXiv 2509.16117).
      group: G, paintings of each caption.
      captions: "own", the frozen encoder writes them; "data", those of the samples.
      caption_temperature: of own captions; 0 takes the likeliest token each time.
      updates: of the optimiser per rollout, each on a part of the images.
      old_logprob: the ratio's denominator is what a "replay" by the program that trains gives, which costs nothing for
        the first update and one more pass of trained steps for others; or what was "recorded" while painting, for
        float32 alone: what 16 bits make of two programs is more than a clip of 1e-4 forgives.
      form, noise_level: of noisy steps, see `flow.make_schedule`.
      timestep_fraction: without a window, the first int(steps * this) steps are trained; noise is added at all.
      window: so many neighbouring steps are noisy and trained, the others are ODE steps; 0: no window.
      window_range: where a window may lie: (first step, behind the last step).
      same_latent: the paintings of a caption share their initial latent and differ by the noise of their steps.
      advantage, clip: as for captions.
      guard: ratios centred and scaled as GRPO-Guard does, see `diffusion.guarded_log_ratio`.
      kl, kl_form: weight and form of the divergence from the decoder that the stage started from.
      learn_negative: whether a gradient flows through the negative branch of guidance.
      nft_beta: how far implied velocities go.
      nft_draws: noise levels that each painting is looked at.
      nft_decay: (rate, most) of the average that paints: its decay is min(rate * updates, most).
    """

    decoder: TowerConfig = LORA
    algorithm: Literal["grpo", "nft"] = "grpo"
    group: int = 24
    captions: Literal["own", "data"] = "own"
    caption_temperature: float = 0.0
    updates: int = 2
    old_logprob: Literal["recorded", "replay"] = "replay"
    form: Literal["sde", "cps"] = "sde"
    noise_level: float = 0.7
    timestep_fraction: float = 0.99
    window: int = 0
    window_range: tuple[int, int] = (0, 5)
    same_latent: bool = True
    advantage: AdvantageConfig = AdvantageConfig(std="batch", floor=0.0)
    clip: ClipConfig = FLOW_CLIP
    guard: bool = False
    kl: float = 0.02
    kl_form: StepKL = "fg_code"
    learn_negative: bool = False
    nft_beta: float = 1.0
    nft_draws: int = 2
    nft_decay: tuple[float, float] = (0.001, 0.5)

    @property
    def trained_steps(self) -> int:
        """W, steps that the loss looks at."""
        return self.window or int(self.paint.steps * self.timestep_fraction)


# What differs from the defaults; `paint` is given apart, for it says how many steps there are.
PRESETS: dict[str, dict[str, Any]] = {
    "flow_grpo": {},
    "fast": {
        "updates": 1,
        "form": "cps",
        "noise_level": 0.8,
        "window": 3,
        "window_range": (0, 5),
        "clip": {"low": 1e-5, "high": 1e-5},
        "kl": 1e-3,
        "kl_form": "velocity",
    },
    "nft": {"algorithm": "nft", "updates": 1, "same_latent": False, "kl": 1e-4, "kl_form": "velocity"},
}
PRESET_PAINT: dict[str, dict[str, Any]] = {
    "flow_grpo": {"steps": 10, "guidance": 4.5},
    "fast": {"steps": 10, "guidance": 1.0},
    "nft": {"steps": 10, "guidance": 1.0},
}


def preset(name: str, **changes: Any) -> dict[str, Any]:
    """Settings of a preset, for a config: `preset("fast", group=8, paint={"memory_gb": 20.0})`.

    Raises:
      ValueError: if there is none of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}, wanted one of {', '.join(PRESETS)}")
    return PRESETS[name] | {"paint": PRESET_PAINT[name] | changes.pop("paint", {})} | changes


def check(settings: UnderstandingForGenSettings) -> None:
    """Raises `ValueError` on settings that cannot be."""
    s, steps = settings, settings.paint.steps
    if s.decoder.mode == "frozen" or s.projector.mode != "frozen" or s.encoder.mode != "frozen":
        raise ValueError(
            f"encoder, projector and decoder have modes {s.encoder.mode!r}, {s.projector.mode!r} and "
            f"{s.decoder.mode!r}; this stage trains the decoder alone, the others are 'frozen'"
        )
    if s.group < 2 or s.updates < 1 or s.caption_temperature < 0:
        raise ValueError(
            f"group is {s.group}, updates {s.updates}, caption_temperature {s.caption_temperature}; wanted at least 2, "
            "at least 1, and 0 or more"
        )
    if s.kl < 0 or (s.kl and (s.decoder.mode == "full" or s.decoder.full)):
        raise ValueError(
            f"kl is {s.kl} with decoder.mode {s.decoder.mode!r} and decoder.full {s.decoder.full!r}; wanted 0, or mode "
            "'lora' alone: what is trained directly has no reference"
        )
    if s.captions == "data" and s.interface != "text":
        raise ValueError("captions are 'data', which has no hidden states; wanted interface 'text'")
    if s.algorithm == "nft":
        if s.nft_beta <= 0 or s.nft_draws < 1 or not 0 <= s.nft_decay[1] < 1 or s.nft_decay[0] < 0:
            raise ValueError(
                f"nft_beta is {s.nft_beta}, nft_draws {s.nft_draws}, nft_decay {s.nft_decay}; see their use"
            )
        if s.updates > 1:
            raise ValueError(
                f"nft has {s.updates} updates, wanted 1: after the first, another policy than the old one painted"
            )
        if s.same_latent:
            raise ValueError(
                "same_latent is True, wanted False: nft paints without noise, so that what is painted of a caption "
                "from one latent is all the same, and nothing can be learnt from it"
            )
        if s.guard or (s.kl and s.kl_form != "velocity"):
            raise ValueError(
                f"nft has no ratios: guard is {s.guard}, kl_form {s.kl_form!r}, wanted False and 'velocity'"
            )
        return
    noisy = flow.make_schedule(steps, form=s.form, noise_level=s.noise_level)
    first, stop = s.window_range
    if s.window and not 0 <= first <= first + s.window <= stop <= steps:
        raise ValueError(f"a window of {s.window} does not fit window_range {s.window_range} of {steps} steps")
    if s.noise_level <= 0 or not 1 <= s.trained_steps <= steps:
        raise ValueError(
            f"noise_level is {s.noise_level}, and {s.trained_steps} of {steps} steps are trained (timestep_fraction "
            f"{s.timestep_fraction}); wanted noise, and at least one of the steps"
        )
    trained = noisy.std[first:stop] if s.window else noisy.std[: s.trained_steps]
    if s.guard and not trained.all():
        raise ValueError(
            f"guard divides by a step's noise, and the last of form {s.form!r} has none; wanted a timestep_fraction "
            "below 1 or a window_range that ends before it"
        )
    if s.old_logprob == "recorded" and s.dtype != "float32":
        raise ValueError(f"old_logprob is 'recorded' and dtype {s.dtype}; wanted 'replay', or float32: see its use")
