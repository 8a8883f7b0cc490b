"""What a configuration reads by a path: KEY, a tab and PATH a line, as "settings.model" and "models/UAE".

    uae train --config FILE --workdir DIR --print-config | python launch/local_paths.py

Not what comes with the package, from another stage, from nothing, from a bucket or, as far as names tell, from the
Hugging Face hub. common.sh asks before it rents machines that share no folder with this one.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WEIGHTS = ("model", "encoder_from", "decoder_from", "vae_from")
PACKAGED = [each.name for each in (Path(__file__).parents[1] / "uae_jax/assets").iterdir() if each.is_dir()]
MADE = re.compile(rf"(previous|new|tfds)(:.*)?|scenes|({'|'.join(PACKAGED)})(/.*)?|[a-z0-9]+://.*")
ON_THE_HUB = re.compile(r"(?!runs/|models/|[.~])[\w.-]+/[\w.-]+", re.ASCII)  # as uae_jax/weights/checkpoint.py reads it


def read(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """All keys of paths below a part of the configuration."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from read(value, (*keys, str(key)))
    elif isinstance(tree, str) and tree and not MADE.fullmatch(tree):
        weights = keys[-1] in WEIGHTS and not ON_THE_HUB.fullmatch(tree)
        if weights or (keys[-1] == "path" and "sources" in keys):
            yield ".".join(keys), tree


if __name__ == "__main__":
    stages = json.load(sys.stdin)
    for name, stage in stages.items():
        for key, path in read(stage, () if len(stages) == 1 else (name,)):
            print(f"{key}\t{path}")
