"""One process of a run of the toy stage: python -m tests.training.toy_process WORKDIR CHANGES

CHANGES is JSON: fields of the experiment; and "slow", seconds that each step takes; "fail_at", the step at which
"fail_in", a process, raises an error. Where it is stands in WORKDIR/at.N.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax

from tests.training import toy
from tests.training.test_loop import experiment
from uae_jax import cli
from uae_jax.parallel import processes
from uae_jax.stages import registry
from uae_jax.training import loop
from uae_jax.training.config import MeshConfig, OptimiserConfig


def main(workdir, changes):
    slow, fail_at, fail_in = changes.pop("slow", 0), changes.pop("fail_at", None), changes.pop("fail_in", None)
    registry.find = lambda name: toy.Toy
    changes["mesh"] = MeshConfig(**changes.get("mesh", {"data": -1}))
    if "optimiser" in changes:
        changes["optimiser"] = OptimiserConfig(**changes["optimiser"])
    changes["settings"] = toy.Settings(**changes.get("settings", {}))
    step = loop.Progress.step

    def step_slowly(self, number):
        (workdir / f"at.{jax.process_index()}").write_text(str(number))
        if number == fail_at and jax.process_index() == fail_in:
            raise ValueError("this process has had enough")
        time.sleep(slow)
        step(self, number)

    loop.Progress.step = step_slowly
    cli._train = lambda name: lambda args: run(workdir, changes)  # errors are told as the command tells them
    return cli.main(["train", "--config", "none", "--workdir", str(workdir)])


def run(workdir, changes):
    with processes.together():
        loop.train(dataclasses.replace(experiment(), **changes), workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
