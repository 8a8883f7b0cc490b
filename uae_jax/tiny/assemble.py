"""Puts trained parts together into the model that ships with the package.

    python -m uae_jax.tiny.assemble --encoder RUN --decoder RUN --vae RUN \\
        --clip RUN --longclip RUN --dinov2 RUN --dinov3 RUN [--measured FILE.json] [--output FOLDER]

Every RUN is the folder of a finished `uae train` run (its model lies in `model/`) or a model folder: parts that stay
come from the package itself, e.g. `--clip uae_jax/assets/tiny/scorers/clip`. The result has the published layout in
bfloat16, and a `MODEL_CARD.md` of what the runs recorded, behind what the card of the model they started from tells. It
replaces FOLDER, by default the one in the package, when it is complete and not before.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.tiny import card
from uae_jax.weights import checkpoint, new, uae
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.pretrained import load_pretrained, parameter_count, write_model
from uae_jax.weights.uae import UAEWeights

UAE_PARTS, SCORERS = ("encoder", "decoder", "vae"), ("clip", "longclip", "dinov2", "dinov3")
LIMIT_BYTES = 12_000_000  # of all files together
_TOKENIZER = "tokenizer.json"
_BESIDE = (_TOKENIZER, "tokenizer_config.json", "preprocessor_config.json")  # of a scorer


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m uae_jax.tiny.assemble", description=__doc__.split("\n")[0])
    for part in (*UAE_PARTS, *SCORERS):
        parser.add_argument(f"--{part}", type=Path, metavar="RUN", required=part in UAE_PARTS)
    parser.add_argument("--measured", type=Path, metavar="FILE.json", help="what uae_jax.tiny.measure wrote of it")
    parser.add_argument("--output", type=Path, default=checkpoint.EMBEDDED / "tiny", metavar="FOLDER")
    args = parser.parse_args(arguments)
    runs = {part: getattr(args, part) for part in (*UAE_PARTS, *SCORERS) if getattr(args, part) is not None}
    assemble(runs, args.output, args.measured)
    print(table(args.output))


def assemble(runs: dict[str, Path], output: Path, measured: Path | None = None) -> None:
    """Writes the whole folder.

    Args:
      runs: part -> its run or model folder; all of `UAE_PARTS`, and any of `SCORERS`.
      output: the folder; one that is there must hold a model, and is replaced.
      measured: a JSON file of figures for the card.

    Raises:
      ValueError: if a part is missing, is of another architecture or size, or was trained with another tokenizer; or
        if the whole is larger than `LIMIT_BYTES`.
    """
    missing = [part for part in UAE_PARTS if part not in runs]
    if missing:
        raise ValueError(f"parts {', '.join(missing)} are missing; give a run of each")
    base = checkpoint.EMBEDDED / "tiny"  # whatever is in it, the files beside the weights are
    weights = _uae({part: model_folder(runs[part]) for part in UAE_PARTS}, base)
    scorers = {part: _scorer(model_folder(runs[part]), base, part) for part in SCORERS if part in runs}
    with checkpoint.NewFolder(output, force=True) as folder:
        folder.rmdir()
        uae.save_published(weights, folder)
        for part, model in scorers.items():
            target = folder / uae.SCORERS / part
            target.mkdir(parents=True)
            write_model(model, target)
            for name in _BESIDE:
                if (base / uae.SCORERS / part / name).is_file():
                    (target / name).write_bytes((base / uae.SCORERS / part / name).read_bytes())
        counts = {part: parameter_count(getattr(weights, part).params) for part in new.UAE_SIZES["tiny"]}
        counts |= {part: parameter_count(model.params) for part, model in scorers.items()}
        (folder / card.NAME).write_text(card.write(counts, runs, measured), encoding="utf-8")
        if size_of(folder) > LIMIT_BYTES:
            raise ValueError(f"{size_of(folder)} bytes in all, wanted at most {LIMIT_BYTES}:\n{table(folder)}")


def model_folder(run: Path) -> Path:
    """The model in the folder of a run, or the folder itself."""
    return run / "model" if (run / "model").is_dir() else run


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def table(folder: Path) -> str:
    """One line for each folder with files in it, and the sum: KB and name."""
    folders = sorted({file.parent for file in folder.rglob("*") if file.is_file()})
    sizes = {str(f.relative_to(folder)): sum(x.stat().st_size for x in f.iterdir() if x.is_file()) for f in folders}
    lines = [f"{size / 1000:9.1f} KB  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()) / 1000:9.1f} KB  in all"])


def _uae(folders: dict[str, Path], base: Path) -> UAEWeights:
    encoder, decoder = (uae.load(folders[part]) for part in ("encoder", "decoder"))
    for part in ("encoder", "decoder"):
        _same_tokenizer(folders[part] / uae.LLM, base / uae.LLM)
    weights = UAEWeights(
        encoder=encoder.encoder,
        projector=decoder.projector,
        decoder=decoder.decoder,
        vae=load_pretrained(folders["vae"]),
        text_encoder=decoder.text_encoder,
        text_encoder_2=decoder.text_encoder_2,
    )
    for part, (architecture, config) in new.UAE_SIZES["tiny"].items():
        _same_sizes(part, getattr(weights, part), architecture.name, config())
    adapted = [name for name in ("encoder_lora", "decoder_lora") if getattr(encoder, name) or getattr(decoder, name)]
    if adapted:
        raise ValueError(f"{', '.join(adapted)}: the embedded model has no adapters; train in full, or merge them")
    models = {part: _bfloat16(getattr(weights, part)) for part in new.UAE_SIZES["tiny"]}
    return dataclasses.replace(weights, **models, files=uae.read_files(base))


def _scorer(folder: Path, base: Path, part: str) -> Pretrained:
    model = load_pretrained(folder)
    architecture, config = new.SCORER_SIZES["tiny"][part]
    _same_sizes(part, model, architecture.name, config())
    if (base / uae.SCORERS / part / _TOKENIZER).is_file():
        _same_tokenizer(folder, base / uae.SCORERS / part)
    return _bfloat16(model)


def _same_sizes(part: str, model: Pretrained, architecture: str, config: Any) -> None:
    # Training measures the scale of latents, which is no size.
    free = {name: getattr(model.config, name) for name in ("scaling_factor", "shift_factor") if part == "vae"}
    wanted = dataclasses.replace(config, **free)
    if (model.architecture.name, model.config) != (architecture, wanted):
        raise ValueError(f"{part} is {model.architecture.name} of {model.config}, wanted {architecture} of {wanted}")


def _same_tokenizer(folder: Path, wanted: Path) -> None:
    """Compares what tokenizer files say, not how: transformers indents them, the package does not."""
    file = folder / _TOKENIZER
    if not file.is_file() or json.loads(file.read_text("utf-8")) != json.loads(
        (wanted / _TOKENIZER).read_text("utf-8")
    ):
        raise ValueError(f"{file} is not what uae_jax.tiny.skeleton writes; train again with the present tokenizer")


def _bfloat16(model: Pretrained) -> Pretrained:
    return dataclasses.replace(model, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"assemble: error: {error}")
