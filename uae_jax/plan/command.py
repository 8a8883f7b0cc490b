"""What `uae plan` does: prints what every stage of a config would take on a topology."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

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
        _write(args.json, plans)  # what cannot be written fails before minutes of compiling
    for name, experiment in experiments:
        plans.append(planning.plan(name, experiment, topology, StandIns(size), closed_form=args.closed_form))
        print(report.text(plans[-1]), end="\n\n", flush=True)
        if args.json:
            _write(args.json, plans)
    return 0 if all(each.fits for each in plans) else 1


def _write(file: str, plans: Sequence[planning.Plan]) -> None:
    """Writes the plans that there are so far."""
    try:
        Path(file).write_text(json.dumps([report.to_json(each) for each in plans], indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"--json {file}: {error.strerror}; wanted a file in a folder that is there") from None


def size_of(config: str) -> str:
    """The size that a config's argument names, as those in `configs/` take it; else that of the published models."""
    named = re.search(r"[:,]size=(\w+)", config)
    return named[1] if named else "full"
