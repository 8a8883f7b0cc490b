"""Settings that a model brings itself."""

import json

import pytest

from uae_jax import commands
from uae_jax.cli import build_parser
from uae_jax.defaults import Defaults, given
from uae_jax.engine import NEGATIVE_PROMPT, CaptionSettings, PaintSettings
from uae_jax.weights import uae


def test_without_a_file_they_are_those_of_the_published_model():
    defaults = Defaults.from_files({})
    assert defaults == Defaults(CaptionSettings(), PaintSettings())
    assert (defaults.caption.max_new_tokens, defaults.paint.steps, defaults.paint.size) == (512, 40, None)
    assert defaults.paint.negative == NEGATIVE_PROMPT


def test_what_the_file_leaves_out_stays():
    text = json.dumps({"paint": {"steps": 7, "size": [32, 64], "negative_prompt": ""}})
    defaults = Defaults.from_files({uae.INFERENCE: text.encode()})
    assert defaults.caption == CaptionSettings()
    assert defaults.paint == PaintSettings(steps=7, size=(32, 64), negative_prompt="")
    assert defaults.paint.negative == ""  # the empty text, not the published one


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"paint": {"stesp": 7}}, "stesp.*'steps'"),
        ({"paint": {"steps": 0}}, "steps is 0"),
        ({"caption": {"max_new_tokens": "many"}}, "max_new_tokens"),
        ({"painting": {}}, "painting.*'paint'"),
    ],
)
def test_a_wrong_file_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Defaults.from_files({uae.INFERENCE: json.dumps(value).encode()})


def test_what_is_given_wins():
    settings = PaintSettings(steps=7, guidance=3.0)
    assert given(settings, steps=None, guidance=1.0) == PaintSettings(steps=7, guidance=1.0)


def test_commands_ask_the_embedded_model_as_it_says():
    parse = build_parser().parse_args
    args = parse(["reconstruct", "x.png", "--output", "o"])
    assert args.model == "tiny"
    writing, painting = commands.caption_settings(args), commands.paint_settings(args)
    assert (writing.question, writing.max_new_tokens) == ("Describe the image.", 192)
    assert (painting.steps, painting.negative, painting.size) == (20, "", None)
    args = parse(["generate", "x", "--output", "o", "--steps", "3", "--size", "32x64", "--negative", "y"])
    painting = commands.paint_settings(args)
    assert (painting.steps, painting.size, painting.negative) == (3, (32, 64), "y")
