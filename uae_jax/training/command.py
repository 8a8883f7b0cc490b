"""What `uae train` and `uae data encode` do: a config in, model folders or a data set out."""

import argparse
import json
import sys
from pathlib import Path

import tqdm

from uae_jax import paths
from uae_jax.data.sources import open_source
from uae_jax.parallel import processes
from uae_jax.stages import precompute
from uae_jax.stages.precompute import EncodeSettings
from uae_jax.training import chain, configure


def train(args: argparse.Namespace) -> int:
    """Runs the config's stages; prints the folder of each result."""
    if args.print_config:
        experiments = configure.load_config(args.config, args.overrides)
        print(json.dumps({name: configure.to_json(experiment) for name, experiment in experiments}, indent=2))
        return 0
    workdir = paths.as_path(args.workdir)
    with processes.together():  # first of all, as a config may use JAX
        experiments = configure.load_config(args.config, args.overrides)
        folders = chain.train_stages(experiments, workdir, quiet=args.quiet)
        if processes.is_main():
            print(*folders, sep="\n")
    return 0


def encode(args: argparse.Namespace) -> int:
    """Writes what a `pretrain` stage would compute of each image and caption; prints what was used and skipped."""
    (name, experiment), *others = configure.load_config(args.config, args.overrides)
    if others or experiment.stage != "pretrain":
        raise ValueError(f"{args.config}: holds {name} of stage {experiment.stage!r}, wanted one stage, 'pretrain'")
    settings = EncodeSettings(
        model=experiment.settings.model,
        encoder_from=experiment.settings.encoder_from,
        vae_from=experiment.settings.vae_from,
        negative=experiment.settings.negative,
        captions=args.captions,
        max_tokens=experiment.settings.max_tokens,
        token_bucket=experiment.settings.token_bucket,
        batch_size=args.batch_size,
        seed=experiment.seed,
    )
    total = sum(len(open_source(source)) for source in experiment.data.sources)
    with tqdm.tqdm(total=total, unit=" record", desc="encoding", file=sys.stderr) as bar:
        tally = precompute.encode_dataset(experiment.data, settings, Path(args.output), progress=bar.update)
    print(tally.table())
    return 0
