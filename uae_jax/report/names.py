"""What the metrics of a run mean: titles, units, which way is better, and which of them belong in one chart."""

import dataclasses
import re

EVALUATION = "evaluation/"
ALIKE, CAPTIONS, LEARNING, POLICY = "How alike", "Captions", "Learning", "Policy"
STEPS, MACHINERY, OTHER = "Denoising steps", "Optimiser, data, machine", "Other"
GROUPS = (ALIKE, CAPTIONS, LEARNING, POLICY, STEPS, OTHER, MACHINERY)
# What a whole run is about: shown first, and compared from stage to stage.
HEADLINES = ("unified", "caption_words", "attribute_recall", "attribute_precision", "painting_accuracy")
_FAMILY = re.compile(r"(.+)/(\d+)")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric, explained.

    Attributes:
      title: for people.
      note: what it is, in a line.
      unit: of its values, "" for none.
      group: one of `GROUPS`.
      better: 1 if more is better, -1 if less is, 0 if neither.
      chart: title of the chart that it shares with others; "" for one of its own.
      line: its label there.
      log: whether a logarithmic axis suits it when it spans several powers of ten.
    """

    title: str
    note: str = ""
    unit: str = ""
    group: str = OTHER
    better: int = 0
    chart: str = ""
    line: str = ""
    log: bool = False


def describe(name: str) -> Metric:
    """Explains a metric by its name, with or without "evaluation/"; one that nobody has heard of is titled so.

    "name/3" is the third of a family, one line of its chart.
    """
    base = name.removeprefix(EVALUATION)
    family = _FAMILY.fullmatch(base)
    if family:
        whole = describe(family[1])
        group = OTHER if whole.group == OTHER else STEPS
        chart = whole.title if group == OTHER else f"{whole.title}, by denoising step"
        title = f"{whole.title}, {family[2]}"
        return dataclasses.replace(whole, title=title, chart=chart, line=family[2], group=group, better=0)
    for pattern, metric in _CATALOGUE:
        if match := pattern.fullmatch(base):
            parts = [part.replace("_", " ") for part in match.groups()]
            texts = {field: _filled(getattr(metric, field), parts) for field in ("title", "note", "line")}
            return dataclasses.replace(metric, **texts)
    return Metric(base)


def rank(name: str) -> tuple[int, int]:
    """Sorts metrics by group, and within it as the catalogue has them."""
    base = name.removeprefix(EVALUATION)
    stem = _FAMILY.sub(r"\1", base)
    place = next((i for i, (pattern, _) in enumerate(_CATALOGUE) if pattern.fullmatch(stem)), len(_CATALOGUE))
    return GROUPS.index(describe(base).group), place


def _filled(template: str, parts: list[str]) -> str:
    for number, part in enumerate(parts):
        template = template.replace(f"{{{number}}}", part)
    return template


def _entries(group: str, *entries: tuple) -> list[tuple[re.Pattern, Metric]]:
    """(pattern, title, note, more fields of `Metric`) -> catalogue entries."""
    return [
        (re.compile(pattern), Metric(title, note, group=group, **(more[0] if more else {})))
        for pattern, title, note, *more in entries
    ]


_UP, _DOWN, _LOG = {"better": 1}, {"better": -1}, {"log": True}
_CATALOGUE = [
    *_entries(
        ALIKE,
        ("unified", "Unified score", "mean of the four scorers: how like its original the painted image is", _UP),
        (
            "score/(.+)",
            "Score by {0}",
            "likeness of painted and original image, by scorer",
            _UP | {"chart": "Score by scorer", "line": "{0}"},
        ),
        ("reward", "Reward", "mean over a batch's rollouts", _UP),
        ("reward_std", "Spread of rewards", "standard deviation within a group of rollouts; none, nothing to learn"),
        (
            "reward/(.+)",
            "Reward by {0}",
            "scorers that make the reward",
            _UP | {"chart": "Reward by scorer", "line": "{0}"},
        ),
        (
            "held_out/(.+)",
            "Held-out score by {0}",
            "scorers outside the reward; if they fall while it rises, it is being gamed",
            _UP | {"chart": "Scorers outside the reward", "line": "{0}"},
        ),
        ("painting_accuracy", "Painting accuracy", "share of the scene's facts that are right in the painting", _UP),
        ("prompt_accuracy", "Painted as captioned", "share that are all that their caption asks for, and no more", _UP),
    ),
    *_entries(
        CAPTIONS,
        ("caption_words", "Caption length", "words of a caption, on average", {"unit": "words"}),
        ("caption_tokens", "Caption length in tokens", "tokens of a caption, on average", {"unit": "tokens"}),
        (
            "attribute_recall",
            "Attribute recall",
            "share of the image's facts that the caption states",
            _UP | {"chart": "Attributes in captions", "line": "recall"},
        ),
        (
            "attribute_precision",
            "Attribute precision",
            "share of what the caption states that is so",
            _UP | {"chart": "Attributes in captions", "line": "precision"},
        ),
        ("truncated", "Captions cut off", "share that reached the longest length before their end", _DOWN),
        ("overlong_price", "Price on length", "what the length of captions takes from their reward", _DOWN),
    ),
    *_entries(
        LEARNING,
        ("loss", "Loss", "what the optimiser lowers; of a policy it says little, see the reward", _DOWN | _LOG),
        ("loss_(long|short)", "Loss on {0} texts", "contrastive loss by the length of texts", _DOWN | _LOG),
        ("accuracy", "Accuracy", "share of tokens that are the likeliest one", _UP),
        ("accuracy_(.+)", "Found in the batch, {0}", "share whose counterpart is the nearest of the batch", _UP),
        (r"(.+)_1_of_(\d+)", "Found among {1}, {0}", "share whose counterpart is the nearest of {1}", _UP),
        ("caption_loss", "Loss on captions", "nats a token, of captions of images", _DOWN | _LOG | {"unit": "nats"}),
        ("caption_accuracy", "Accuracy on captions", "share of caption tokens that are the likeliest one", _UP),
        ("text_loss", "Loss on texts", "nats a token, of texts without an image", _DOWN | _LOG | {"unit": "nats"}),
        ("mse", "Squared error", "mean over pixels, or of the velocity that is predicted", _DOWN | _LOG),
        (
            r"mse_at_(.+)",
            "Squared error at noise {0}",
            "of the velocity, at fixed noise levels",
            _DOWN | _LOG | {"chart": "Squared error by noise level", "line": "noise {0}"},
        ),
        ("l1", "Absolute error", "mean over pixels", _DOWN | _LOG),
        ("psnr", "PSNR", "peak signal to noise of reconstructions", _UP | {"unit": "dB"}),
        ("(dino|ibot|koleo)", "Loss, {0} part", "a part of the loss of self-distillation", _LOG),
        ("latent_std", "Spread of latents", "standard deviation"),
        ("logit_scale", "Logit scale", "inverse temperature of the contrastive loss"),
        ("(target|mean_target)_entropy", "Entropy of targets: {0}", "near zero, it has collapsed", {"unit": "nats"}),
        ("(feature|student)_spread", "Spread of features: {0}", "near zero, they have collapsed"),
    ),
    *_entries(
        POLICY,
        (
            "entropy",
            "Entropy",
            "of the policy's choice of a token; a fall to nothing ends exploration",
            {"unit": "nats"},
        ),
        ("kl", "KL divergence", "of the policy from its reference; of an autoencoder, from a unit Gaussian", _LOG),
        (
            "ratio_(min|mean|max)",
            "Probability ratio, {0}",
            "new policy to the one that sampled; 1 means no change",
            {"chart": "Probability ratio", "line": "{0}"},
        ),
        (
            "clip_(high|low)",
            "Clipped, {0}",
            "share whose ratio left the trusted range; all low hints at lost precision",
            {"chart": "Clipped", "line": "{0}"},
        ),
        ("zero_variance_groups", "Groups without spread", "share of groups whose rewards are all the same", _DOWN),
        ("velocity_gap", "Velocity gap", "squared difference from the reference's velocity", _LOG),
    ),
    *_entries(
        MACHINERY,
        ("grad_norm", "Gradient norm", "before clipping", _LOG),
        ("learning_rate", "Learning rate", "of the schedule"),
        ("nonfinite", "Steps that were no number", "share of steps, left out of all other means", _DOWN),
        ("nonfinite_steps", "Steps that were no number, in all", "since the start", _DOWN | {"unit": "steps"}),
        ("dropped", "Captions dropped", "share that was replaced by none, for guidance"),
        ("sigma", "Noise level", "mean of what was drawn"),
        (
            "captions_cut",
            "Captions cut to length",
            "captions of a batch that are longer than the limit",
            {"unit": "captions"},
        ),
        ("cut_captions", "Captions cut to length", "share of captions that are longer than the limit"),
        ("tokens", "Tokens", "scored in a batch", {"unit": "tokens"}),
        ("waited_for_data", "Waited for data", "share of the time", _DOWN),
        ("skipped_records", "Records skipped", "so far, as they were bad", _DOWN | {"unit": "records"}),
        ("converted_records", "Records converted", "so far: grey, alpha, 16 bits, ...", {"unit": "records"}),
        ("compiled_programs", "Compiled", "programs; none once a run is under way", _DOWN | {"unit": "programs"}),
        ("steps_per_second", "Speed", "steps a second", _UP | {"unit": "steps/s"}),
    ),
]
