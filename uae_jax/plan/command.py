"""What `uae plan` does: prints what every stage of a config would take on a topology."""

import argparse
import json
import re
from pathlib import Path

from uae_jax.data.caption_files import write_whole
from uae_jax.plan import compiling, planning, report, topologies
from uae_jax.plan.stand_ins import StandIns
from uae_jax.training import chain, configure


def run(args: argparse.Namespace) -> int:
    """Plans all stages; 1 if one of them does not fit.

    Raises:
      ValueError: if a stage cannot be planned, or the JSON file cannot be written; it then has what came before.
    """
    topology = topologies.parse(args.topology)
    compiling.look_for_no_device()
    experiments = chain.untrained(configure.load_config(args.config, args.overrides))  # sizes are all that counts
    size = args.models or size_of(args.config)
    plans = []
    if args.json:
        _check(Path(args.json))
    for name, experiment in experiments:
        plans.append(planning.plan(name, experiment, topology, StandIns(size), closed_form=args.closed_form))
        print(report.text(plans[-1]), end="\n\n", flush=True)
        if args.json:
            write_whole(Path(args.json), json.dumps([report.to_json(each) for each in plans], indent=2) + "\n")
    return 0 if all(each.fits for each in plans) else 1


def _check(file: Path) -> None:
    """Raises `ValueError` where plans could not be written, or something else would go; minutes before there is one."""
    try:
        with file.open("a+") as opened:
            opened.seek(0)
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "holds no text"
        raise ValueError(f"--json {file}: {why}; wanted a file in a folder that is there") from None
    if text and not text.startswith("["):
        raise ValueError(f"--json {file}: holds something else than plans; choose another file")


def size_of(config: str) -> str:
    """The size that a config's argument names, as those in `configs/` take it; else that of the published models."""
    named = re.search(r"[:,]size=(\w+)", config)
    return named[1] if named else "full"
