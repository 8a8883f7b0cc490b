"""The tokenizers of the tiny models: byte-level BPE of the published classes, trained on the words of the scene world.

All 256 bytes are tokens, so any text can be written; every word of a scene's caption is one token. The special tokens,
their order and the chat template are Qwen2.5-VL's, so that whatever reads the published model reads this one.

Models are trained with the files that `uae_jax.tiny.skeleton` wrote into the package. Other words make other token
numbers, so after a change here everything has to be trained anew.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from uae_jax.data import scenes
from uae_jax.data.prompts import CAPTION_QUESTION
from uae_jax.models import clip
from uae_jax.models.qwen2_5_vl import config as qwen

# Numbers 151643 to 151664 of the published tokenizer; here the last ones, too. Tool and code tokens count as text.
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
OTHER = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
QUESTION = "Describe the image."  # what the tiny encoder is asked; it has learnt no other

# Renders as Qwen2.5-VL's: a default system line, roles in ChatML, an image as three tokens.
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{{- 'Picture ' ~ seen.images ~ ': ' if add_vision_id else '' -}}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{{- 'Video ' ~ seen.videos ~ ': ' if add_vision_id else '' -}}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""

# What numbers remain go to pieces of everyday words, so that other questions and prompts are not all single letters.
_EVERYDAY = """
about above after again air all also animal any around away baby bag ball bed before behind beside between big bird
blank bottle bowl box boy bread bright building bus busy can car card cat chair child city clear clock cloth cloud
cold colour coffee corner country cup dark day deep desk dog door down draw drawn dress drink dry each early earth
empty evening every eye face family far farm field fire fish flat floor flower food foot forest four front fruit
full garden girl glass gold good great ground group hair half hand happy hat head high hill home horse hot house how
ice inside keep kind kitchen lake lamp land last leaf light line little live long look low make man many map metal
middle milk mirror moon more morning most mountain mouth much music name near nearby new night nine noise nose
number ocean old open other outside over own page paint painted paper part people person phone photo picture piece
place plain plant plate play point quiet rain read right river road rock roof room rough round sand sea season seat
seven shade shadow sharp ship shirt shop short show side sign silver simple sit sky sleep slow smooth snow soft some
soup spring stand station stone store street style summer sun table tall tea ten text thick thin thing tiny toy
train travel tree under up very view village wall warm watch water wave weather west wet wheel where which wide wild
wind window winter wood woman word work world write year yes young zoo
"""
_TEMPLATE = "You are a helpful assistant. system user assistant generate"
_OFTEN = 100  # how much a scene's word counts against an everyday one


def write_qwen(folder: Path) -> None:
    """Writes the encoder's tokenizer, of `qwen2_5_vl.tiny().text.vocab` tokens, and its chat template."""
    import transformers

    added = [*SPECIAL, *OTHER]
    config = qwen.tiny()
    model = _trained(transformers.Qwen2Tokenizer(vocab={}, merges=[]), config.text.vocab - len(added))
    model.add_tokens([tokenizers.AddedToken(t, special=t in SPECIAL, normalized=False) for t in added])
    _write(folder, model)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "additional_special_tokens": list(SPECIAL[1:]),
            "model_max_length": config.text.max_positions,
            "errors": "replace",
            "split_special_tokens": False,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_clip(folder: Path, positions: int) -> None:
    """Writes CLIP's tokenizer, of `clip.tiny().text.vocab` tokens; the last two begin and end a text, as published.

    Args:
      folder: an existing folder.
      positions: of the text tower, to which `truncation=True` cuts.
    """
    import transformers

    ends = [CLIP_START, CLIP_END]
    blank = transformers.CLIPTokenizer()
    model = _trained(blank, clip.tiny().text.vocab - len(ends))
    vocab = json.loads(model.to_str())["model"]
    tokens = vocab["vocab"] | {end: len(vocab["vocab"]) + i for i, end in enumerate(ends)}
    tokenizer = transformers.CLIPTokenizer(
        vocab=tokens, merges=[tuple(pair) for pair in vocab["merges"]], model_max_length=positions
    )
    _write(folder, tokenizer.backend_tokenizer)
    special = {"bos_token": CLIP_START, **dict.fromkeys(("eos_token", "pad_token", "unk_token"), CLIP_END)}
    stated = {"tokenizer_class": "CLIPTokenizer", "model_max_length": positions, "do_lower_case": True, **special}
    _write_json(folder / "tokenizer_config.json", stated)


def _trained(blank: Any, size: int) -> tokenizers.Tokenizer:
    """Trains a BPE of exactly `size` tokens that cuts texts and marks the ends of words as a transformers tokenizer.

    Raises:
      ValueError: if the texts do not give so many.
    """
    rules = blank.backend_tokenizer
    suffix = rules.model.end_of_word_suffix or ""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=suffix))
    model.normalizer, model.pre_tokenizer, model.decoder = rules.normalizer, rules.pre_tokenizer, rules.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        # A byte that ends a word is another token, so both must be there for all of them.
        special_tokens=[*alphabet, *(byte + suffix for byte in alphabet if suffix)],
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    model.train_from_iterator(_texts(), trainer)
    if model.get_vocab_size() != size:
        raise ValueError(f"the texts give {model.get_vocab_size()} tokens, wanted {size}; add words to _EVERYDAY")
    plain = json.loads(model.to_str())["model"]
    merges = [tuple(pair) for pair in plain["merges"]]
    model.model = models.BPE(vocab=plain["vocab"], merges=merges, end_of_word_suffix=suffix)
    fresh = tokenizers.Tokenizer(model.model)  # one that does not know the bytes as special tokens
    fresh.normalizer, fresh.pre_tokenizer, fresh.decoder = rules.normalizer, rules.pre_tokenizer, rules.decoder
    return fresh


def _texts() -> Iterator[str]:
    """What the merges are learnt from: first of all, by weight, the words of captions and of the chat template."""
    for word in [*scenes.vocabulary(), *_TEMPLATE.split(), *QUESTION.split()]:
        yield from [f" {word}", word] * _OFTEN  # behind another word, and at the beginning of a text
    yield CAPTION_QUESTION
    for word in _EVERYDAY.split():
        yield f" {word}"


def _write(folder: Path, model: tokenizers.Tokenizer) -> None:
    (folder / "tokenizer.json").write_text(model.to_str(pretty=False) + "\n", encoding="utf-8")


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
