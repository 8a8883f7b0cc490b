"""Captions as CLIP's text tower takes them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from uae_jax.data.text import pad_tokens
from uae_jax.data.tokenizers import load_tokenizer
from uae_jax.models.clip import LEGACY_EOS, CLIPTextConfig
from uae_jax.weights import checkpoint

_BUCKETS = (16, 32, 64, 128)


class CLIPTokens:
    """Tokenises, pads to a few lengths, and cuts to the position table with the end token kept."""

    def __init__(self, folder: Path, config: CLIPTextConfig):
        """Loads a tokenizer.

        Raises:
          ValueError: if there is none in the folder, or it is not that of a text tower of these sizes.
        """
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(f"{folder}: no tokenizer.json in it (nor vocab.json); name a folder in tokenizer")
        self.tokenizer = load_tokenizer(folder)
        self.config = config
        start, end, size = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, len(self.tokenizer)
        wanted = size - 1 if config.eos_token_id == LEGACY_EOS else config.eos_token_id  # legacy: the highest id
        if start is None or end != wanted or size > config.vocab:
            raise ValueError(
                f"{folder}: tokenizer of {size} tokens that ends texts with {end}, wanted at most {config.vocab} and "
                f"{wanted} as the text tower; name another folder in tokenizer"
            )
        # All processes of a run must make one shape, and none sees the others' captions.
        fewer = [length for length in _BUCKETS if length < config.positions]
        self.lengths = (config.positions,) if jax.process_count() > 1 else (*fewer, config.positions)

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens i32[B, T], T one of a few lengths, and whether a caption was cut, bool[B].

        Special tokens that a caption spells out are plain text.
        """
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = self.tokenizer(
            list(captions), add_special_tokens=False, truncation=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        pad = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        tokens, _, cut = pad_tokens([[start, *row, end] for row in rows], self.lengths, pad, keep_last=1)
        return tokens, cut

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files, with the length that the tower takes."""
        self.tokenizer.model_max_length = self.config.positions
        self.tokenizer.save_pretrained(folder)


def fingerprints(captions: Sequence[str]) -> np.ndarray:
    """Eight bytes of each text, i32[B, 2]: equal exactly where texts are, whatever process they are in."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in captions)
    return np.frombuffer(digests, "<i4").reshape(len(captions), 2)


def first_sentence(caption: str) -> str:
    """What LongCLIP takes as the short caption of a long one."""
    return caption.split(". ")[0]


def tokenizer_folder(name: str, model_folder: Path | None) -> Path:
    """Where the tokenizer lies: as named, else beside the model, else that of the embedded CLIP."""
    return checkpoint.resolve(name) if name else model_folder or checkpoint.EMBEDDED / "tiny" / "scorers" / "clip"
