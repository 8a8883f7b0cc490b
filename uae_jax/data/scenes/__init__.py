"""The scene world: procedural images with exact ground truth, captions of them, and scores for both."""

from uae_jax.data.scenes.captions import LEVELS, write_caption
from uae_jax.data.scenes.claims import ATTRIBUTES, Claims, Description, Relation
from uae_jax.data.scenes.detect import detect
from uae_jax.data.scenes.draws import scene_rng
from uae_jax.data.scenes.graph import Scene, SceneConfig, SceneObject, sample_scene
from uae_jax.data.scenes.lexicon import vocabulary
from uae_jax.data.scenes.painting import PaintingScore, score_painting, score_painting_of_caption
from uae_jax.data.scenes.parse import parse_caption
from uae_jax.data.scenes.regions import PLACED_REGIONS, REGIONS, write_regions
from uae_jax.data.scenes.render import render
from uae_jax.data.scenes.scores import CaptionScore, Tally, score_caption

__all__ = [
    "ATTRIBUTES",
    "LEVELS",
    "PLACED_REGIONS",
    "REGIONS",
    "CaptionScore",
    "Claims",
    "Description",
    "PaintingScore",
    "Relation",
    "Scene",
    "SceneConfig",
    "SceneObject",
    "Tally",
    "detect",
    "parse_caption",
    "render",
    "sample_scene",
    "scene_rng",
    "score_caption",
    "score_painting",
    "score_painting_of_caption",
    "vocabulary",
    "write_caption",
    "write_regions",
]
