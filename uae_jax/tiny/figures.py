"""Measures a UAE model and its scorers on held-out scenes: what a foundation has to be able to do.

Every function takes `Scenes` and returns name -> number. Letters: N scenes, G of a group.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from uae_jax.data import scenes as world
from uae_jax.data.scenes import Scene, SceneConfig, SceneObject, scene_rng
from uae_jax.data.scenes.graph import COLOURS, FILLS, SHAPES, SIDE_PX
from uae_jax.defaults import given
from uae_jax.pipeline import UAE, Reconstruction
from uae_jax.rewards import reconstruction as reconstruction_reward
from uae_jax.rewards.scorers import Scorer
from uae_jax.stages import scene_scores

SEED = 2  # of the scenes; recipes train on those of 0 and look at those of 1
ONE_OBJECT = SceneConfig(counts=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
SEVERAL = SceneConfig(counts=(0.0, 1.0, 1.0, 1.0, 1.0, 1.0))
CHANGES = (0, 1, 2, 4)  # attributes of one scene that differ from the other
_BATCH = 64
Progress = Callable[[int], None]  # called with the number of scenes done


@dataclasses.dataclass(frozen=True)
class Scenes:
    """N scenes and their images; (seed, index) of the world decides all of them.

    Attributes:
      scenes: the graphs.
      images: RGB, 64x64.
      seed: of the world, also for captions.
    """

    scenes: tuple[Scene, ...]
    images: tuple[Image.Image, ...]
    seed: int

    @classmethod
    def sample(cls, count: int, seed: int = SEED, config: SceneConfig = SceneConfig()) -> "Scenes":
        """Draws scenes 0 to `count` - 1."""
        graphs = tuple(world.sample_scene((seed, i), config) for i in range(count))
        return cls(graphs, tuple(Image.fromarray(world.render(scene)) for scene in graphs), seed)

    def captions(self, level: str) -> list[str]:
        """One caption for each scene, of a level of detail of `LEVELS`."""
        return [world.write_caption(s, level, scene_rng(self.seed + 1000, i)) for i, s in enumerate(self.scenes)]

    @property
    def pixels(self) -> np.ndarray:
        """u8[N, 64, 64, 3]."""
        return np.stack([np.asarray(image) for image in self.images])


def reconstruction(uae: UAE, scenes: Scenes, progress: Progress) -> dict[str, float]:
    """The VAE's PSNR in dB, from the mode of its posterior: the mean over images, and the tenth of a hundred worst."""
    vae, params = uae.engine.vae, uae.weights.vae.params

    @jax.jit
    def psnr(pixels: jax.Array) -> jax.Array:
        images = pixels.astype(jnp.float32) / 127.5 - 1
        again = jnp.clip(vae.apply({"params": params}, images), -1, 1)
        error = jnp.mean(((again - images) / 2) ** 2, axis=(1, 2, 3))  # of images in [0, 1]
        return -10 * jnp.log10(error)

    values = []
    for batch in _batches(scenes.pixels):
        values.append(np.asarray(psnr(batch)))
        progress(len(batch))
    values = np.concatenate(values)
    return {"psnr": float(values.mean()), "psnr_10th_percentile": float(np.percentile(values, 10))}


def retrieval(scorer: Scorer, tokenizer, scenes: Scenes, levels: Sequence[str], group: int, progress: Progress):
    """How often an image's own caption is nearest to it among those of `group` scenes; chance is 1 / group.

    Captions that two scenes of a group share count as own for both.

    Args:
      scorer: CLIP or LongCLIP.
      tokenizer: of its text tower; longer captions are cut, the end token kept.
      scenes: N; whole groups are used.
      levels: of detail; one figure each.
      group: G.
      progress: called with scenes done, for each level.
    """
    model, config = scorer.model, scorer.model.config
    module = model.architecture.module(config, scorer.runtime)
    compare = jax.jit(lambda images, tokens: module.apply({"params": model.params}, images, tokens)[0])
    images = np.stack([scorer.preprocessing(image) for image in scenes.images])
    found = {}
    for level in levels:
        texts, right, total = scenes.captions(level), 0, 0
        told = tokenizer(
            texts, padding="max_length", truncation=True, max_length=config.text.positions, return_tensors="np"
        )["input_ids"].astype(np.int32)
        for start in range(0, len(texts) - group + 1, group):
            some = slice(start, start + group)
            nearest = np.asarray(compare(images[some], told[some])).argmax(axis=1)
            right += sum(texts[start + i] == texts[start + j] for i, j in enumerate(nearest))
            total += group
            progress(group)
        found[f"retrieval_1_of_{group}_{level}"] = right / total
    return found


def captioning(uae: UAE, scenes: Scenes, progress: Progress) -> tuple[dict[str, float], list[str]]:
    """What the captions say: grammatical fraction, words, precision and recall by category, pooled over all scenes.

    Returns:
      the figures, and the captions.
    """
    captions = [""] * len(scenes.images)
    for place, caption in uae.iter_captions(list(scenes.images)):
        captions[place] = caption
        progress(1)
    claims = [world.parse_caption(caption) for caption in captions]
    scores = [world.score_caption(claim, scene) for claim, scene in zip(claims, scenes.scenes, strict=True)]
    pooled = sum(scores[1:], scores[0])
    figures = {
        "grammatical": sum(claim.grammatical for claim in claims) / len(claims),
        "words": float(np.mean([len(caption.split()) for caption in captions])),
    }
    for name in ("attribute", "entity", *world.ATTRIBUTES, "relation", "count", "background"):
        tally = getattr(pooled, name)
        figures |= {f"{name}_precision": tally.precision, f"{name}_recall": tally.recall}
    return figures, captions


def painting(uae: UAE, scenes: Scenes, level: str, progress: Progress) -> tuple[dict[str, float], list[Image.Image]]:
    """How often a painting is what its caption says, and nothing else: all of it, and by tag.

    Each tag is the mean of `PaintingScore` over the captions that ask for such a thing; one that none asks for is left
    out.

    Returns:
      the figures, and the paintings.
    """
    captions = scenes.captions(level)
    paintings: list[Image.Image | None] = [None] * len(captions)
    for place, image in uae.iter_paintings(captions):
        paintings[place] = image
        progress(1)
    claims = [world.parse_caption(caption) for caption in captions]
    pairs = zip(paintings, claims, strict=True)
    scores = [world.score_painting_of_caption(np.asarray(image), claim) for image, claim in pairs]
    figures = {"accuracy": float(np.mean([score.accuracy for score in scores]))}
    for name in (field.name for field in dataclasses.fields(world.PaintingScore)):
        values = [getattr(score, name) for score, claim in zip(scores, claims, strict=True) if _asks(claim, name)]
        if values:
            figures[name] = float(np.mean(values))
    return figures, paintings


@dataclasses.dataclass(frozen=True)
class Look:
    """How the loop is gone through when it is measured; what is None is as the model has it.

    Attributes:
      interface: "text" passes the caption alone to the decoder, "answer_hidden" the encoder's states.
      conditioning: captions are read with the encoder's adapter, "current", or without, "base".
      max_new_tokens: at which captions are cut off.
      guidance: that captions are painted with; 1 is off.
    """

    interface: Literal["text", "answer_hidden"] = "text"
    conditioning: Literal["current", "base"] | None = None
    max_new_tokens: int | None = None
    guidance: float | None = None


def loop(
    uae: UAE, scenes: Scenes, progress: Progress, look: Look = Look()
) -> tuple[dict[str, float], list[Reconstruction]]:
    """Every image captioned greedily and painted again: each scorer, their mean, and what captions and paintings hold.

    Returns:
      the figures, and the reconstructions.
    """
    ratios, done = loop_by_scene(uae, scenes, progress, look)
    return scene_scores.pooled(ratios), done


def loop_by_scene(
    uae: UAE, scenes: Scenes, progress: Progress, look: Look = Look()
) -> tuple[dict[str, np.ndarray], list[Reconstruction]]:
    """`loop`, of each scene by itself: f64[N, 2] each, see `scene_scores.pooled`."""
    done: list[Reconstruction | None] = [None] * len(scenes.images)
    writing = given(uae.defaults.caption, max_new_tokens=look.max_new_tokens)
    painting = given(uae.defaults.paint, conditioning=look.conditioning, guidance=look.guidance)
    for place, result in uae.iter_reconstructions(list(scenes.images), writing, painting, interface=look.interface):
        done[place] = result
        progress(1)
    scores = {name: np.array([result.scores[name] for result in done]) for name in uae.scorers}
    if scores:
        scores = {"unified": reconstruction_reward.unified(scores)} | scores
    captions = [result.caption for result in done]
    scores["words"] = [len(caption.split()) for caption in captions]
    painted = [np.asarray(result.image) for result in done]
    ratios = {name: scene_scores.of_each(values) for name, values in scores.items()}
    return ratios | scene_scores.by_scene(list(scenes.pixels), captions, painted), done


def _asks(claims: world.Claims, tag: str) -> bool:
    """Whether a caption says anything that this tag of `PaintingScore` judges."""
    if tag in world.ATTRIBUTES:
        return any(getattr(entity, tag) is not None for entity in claims.entities)
    if tag == "relation":
        return bool(claims.relations)
    if tag == "background":
        return claims.background is not None
    return tag == "count" or len(claims.entities) > 1  # binding


def closeness(scorer: Scorer, scenes: Scenes, progress: Progress) -> dict[str, float]:
    """Similarity of a scene to itself with 0, 1, 2, 4 attributes changed, and to another scene.

    Nothing changed means painted again with every object up to a pixel away, so 1 is not to be had.

    Returns:
      the means; "ordered", the fraction of scenes that are more like themselves with one change than like another
      scene; "monotone", 1.0 where the means fall with every change.
    """
    similar: dict[str, np.ndarray] = {}
    for count in CHANGES:
        others = [
            Image.fromarray(world.render(changed(scene, count, scene_rng(scenes.seed + 2000 + count, i))))
            for i, scene in enumerate(scenes.scenes)
        ]
        similar[f"changed_{count}"] = scorer.similarity(scenes.images, others)
        progress(len(others))
    similar["other_scene"] = scorer.similarity(scenes.images, [*scenes.images[1:], scenes.images[0]])
    progress(len(scenes.images))
    means = {name: float(values.mean()) for name, values in similar.items()}
    falling = list(means.values())
    return means | {
        "ordered": float((similar["changed_1"] > similar["other_scene"]).mean()),
        "monotone": float(all(a > b for a, b in itertools.pairwise(falling))),
    }


def changed(scene: Scene, count: int, rng: np.random.Generator) -> Scene:
    """Moves every object by up to a pixel, and changes shape, colour or fill in `count` places, or all there are."""
    places = [(i, name) for i in range(len(scene.objects)) for name in ("shape", "colour", "fill")]
    chosen = [places[i] for i in rng.permutation(len(places))[:count]]
    choices = {"shape": SHAPES, "colour": COLOURS, "fill": FILLS}
    objects = [_moved(item, rng) for item in scene.objects]
    for i, name in chosen:
        others = [value for value in choices[name] if value != getattr(objects[i], name)]
        objects[i] = dataclasses.replace(objects[i], **{name: others[rng.integers(len(others))]})
    return dataclasses.replace(scene, objects=tuple(objects))


def _moved(item: SceneObject, rng: np.random.Generator) -> SceneObject:
    dx, dy = rng.uniform(-1, 1, 2) / SIDE_PX
    return dataclasses.replace(item, x=item.x + dx, y=item.y + dy)


def _batches(array: np.ndarray) -> list[np.ndarray]:
    return [array[i : i + _BATCH] for i in range(0, len(array), _BATCH)]
