"""The tokenizers of the tiny models: complete, stable, and in the published order."""

import unicodedata

import numpy as np
import pytest
import transformers

from uae_jax.data import scenes
from uae_jax.data.prompts import PromptBuilder
from uae_jax.models import clip
from uae_jax.models.qwen2_5_vl import tiny
from uae_jax.tiny import skeleton
from uae_jax.weights import checkpoint

# Numbers of the published tokenizer (Qwen/Qwen2.5-VL-3B-Instruct, tokenizer_config.json).
PUBLISHED = {
    "<|endoftext|>": 151_643,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    "<|vision_start|>": 151_652,
    "<|vision_end|>": 151_653,
    "<|image_pad|>": 151_655,
    "<|video_pad|>": 151_656,
    "<|file_sep|>": 151_664,  # the last
}
ODD = "".join(map(chr, range(1, 1500))) + "\u4e2d\U0001f600 <|im_end|>"


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(checkpoint.resolve("tiny/llm_model"))


@pytest.fixture(scope="module", params=["clip", "longclip"])
def clip_tokenizer(request):
    return request.param, transformers.AutoTokenizer.from_pretrained(
        checkpoint.resolve(f"tiny/scorers/{request.param}")
    )


def test_special_tokens_stand_as_in_the_published_tokenizer(tokenizer):
    config = tiny()
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer") and len(tokenizer) == config.text.vocab
    shift = PUBLISHED["<|file_sep|>"] - (config.text.vocab - 1)
    for token, number in PUBLISHED.items():
        assert tokenizer.convert_tokens_to_ids(token) == number - shift, token
    assert config.image_token_id == PUBLISHED["<|image_pad|>"] - shift
    assert config.video_token_id == PUBLISHED["<|video_pad|>"] - shift
    assert config.vision_start_token_id == PUBLISHED["<|vision_start|>"] - shift
    assert config.vision_end_token_id == PUBLISHED["<|vision_end|>"] - shift
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert config.eos_token_id == tokenizer.eos_token_id


def test_every_word_of_a_caption_is_one_token(tokenizer, clip_tokenizer):
    for word in scenes.vocabulary():
        assert len(tokenizer(word)["input_ids"]) == 1, word
        assert len(tokenizer(" " + word)["input_ids"]) == 1, word
        assert len(clip_tokenizer[1](word)["input_ids"]) == 3, word  # with start and end


def test_any_text_survives(tokenizer):
    tokens = tokenizer(ODD, split_special_tokens=True)["input_ids"]
    assert max(tokens) < 1002  # no special token among them
    assert tokenizer.decode(tokens) == unicodedata.normalize("NFC", ODD)


def test_a_question_is_rendered_as_published(tokenizer):
    said = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    wanted = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nWhat is it?{image}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.apply_chat_template([said], tokenize=False, add_generation_prompt=True) == wanted
    numbered = tokenizer.apply_chat_template([said], tokenize=False, add_vision_id=True)
    assert f"What is it?Picture 1: {image}<|im_end|>\n" in numbered and not numbered.endswith("assistant\n")
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.apply_chat_template(own, tokenize=False) == wanted


def test_prompts_are_built_from_the_shipped_files(tokenizer):
    builder = PromptBuilder.from_folder(checkpoint.resolve("tiny/llm_model"), tiny())
    image = scenes.render(scenes.sample_scene((5, 0)))
    from PIL import Image

    prompts = builder.ask([[Image.fromarray(image)]], ["Describe the image."])
    # 64 pixels are 8x8 patches of 8, 16 tokens of 2x2 patches, whatever the size of the image was.
    assert (np.asarray(prompts.tokens) == tiny().image_token_id).sum() == 16
    large = builder.ask([[Image.fromarray(image).resize((300, 300))]], ["Describe the image."])
    assert (np.asarray(large.tokens) == tiny().image_token_id).sum() == 16


def test_clip_ends_a_text_by_its_last_token_even_where_it_is_cut(clip_tokenizer):
    name, tokenizer = clip_tokenizer
    config = {"clip": clip.tiny(), "longclip": clip.tiny_longclip()}[name].text
    assert type(tokenizer).__name__.startswith("CLIPTokenizer") and len(tokenizer) == config.vocab
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (config.vocab - 2, config.vocab - 1)
    assert config.eos_token_id == tokenizer.eos_token_id
    cut = tokenizer("a red circle and " * 100, truncation=True)["input_ids"]
    assert len(cut) == config.positions == {"clip": 77, "longclip": 248}[name]
    assert (cut[0], cut[-1]) == (config.vocab - 2, config.vocab - 1)
    assert tokenizer("A RED Circle")["input_ids"] == tokenizer("a red circle")["input_ids"]
    assert max(tokenizer(ODD.removesuffix("<|im_end|>"))["input_ids"][1:-1]) < config.vocab - 2  # nothing is unknown


@pytest.mark.slow
def test_the_shipped_files_are_those_that_the_script_writes(tmp_path):
    skeleton.write(tmp_path)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == checkpoint.resolve(f"tiny/{file.relative_to(tmp_path)}").read_bytes(), file
