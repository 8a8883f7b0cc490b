"""Tokenizers, read by transformers."""

import json
from pathlib import Path
from typing import Any

# What `AutoTokenizer` takes for our encoders and text towers. To find that out it imports PyTorch where that is
# installed, as in Colab: seconds, for nothing.
_CLASSES = ("Qwen2Tokenizer", "CLIPTokenizer")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, as `transformers.AutoTokenizer` gives it.

    Args:
      folder: with `tokenizer.json`, or `vocab.json` and `merges.txt`.
    """
    import transformers

    told = folder / "tokenizer_config.json"
    name = json.loads(told.read_text()).get("tokenizer_class") if told.is_file() else None
    kind = (name or "").removesuffix("Fast")
    return getattr(transformers, kind if kind in _CLASSES else "AutoTokenizer").from_pretrained(folder)
