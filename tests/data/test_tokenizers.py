"""Tokenizers: those that `AutoTokenizer` gives, without the seconds that it takes to import PyTorch."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import transformers

from uae_jax.data.tokenizers import load_tokenizer
from uae_jax.weights import checkpoint

EMBEDDED = checkpoint.resolve("tiny")
TEXTS = ("a large red star", 'Zwölf  Jahre,\n"quoted" <|im_start|> 日本 <|endoftext|>', "")


@pytest.mark.parametrize("place", ["llm_model", "scorers/clip", "scorers/longclip"])
@pytest.mark.parametrize("named", ["", "Fast"])
def test_it_is_the_tokenizer_that_transformers_would_choose(place, named, tmp_path):
    folder = shutil.copytree(EMBEDDED / place, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] += named  # as folders that older versions wrote have it
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    own, other = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert type(own) is type(other)
    assert own.special_tokens_map == other.special_tokens_map and own.chat_template == other.chat_template
    for text in TEXTS:
        for settings in ({}, {"split_special_tokens": True}):
            assert own(text, **settings)["input_ids"] == other(text, **settings)["input_ids"]


def test_any_other_class_is_left_to_transformers(tmp_path):
    folder = shutil.copytree(EMBEDDED / "llm_model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "tokenizer_config.json").unlink()
    own, other = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert own(TEXTS[0])["input_ids"] == other(TEXTS[0])["input_ids"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_a_model_is_loaded_without_importing_torch():
    code = "import sys; from uae_jax.pipeline import UAE; UAE.from_pretrained('tiny'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
