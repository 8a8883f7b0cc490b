"""One process of a run that saves what it has restored, having done no step.

python -m tests.training.restore_process CONFIG WORKDIR OTHER OVERRIDES...

The newest checkpoint of WORKDIR is saved again in OTHER/checkpoints. What of it this mesh splits stands in
OTHER/split.json: path -> into how many parts.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax

from uae_jax.parallel import processes
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages import registry
from uae_jax.training import configure
from uae_jax.training.checkpoints import CheckpointStore
from uae_jax.training.loop import Run


def main(config, workdir, other, *overrides):
    with processes.together():
        ((name, experiment),) = configure.load_config(config, overrides)
        stage = registry.find(experiment.stage)(experiment.settings, experiment.seed)
        mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
        with jax.set_mesh(mesh), Run(experiment, stage, mesh, Path(workdir), name, True, None) as run:
            store = CheckpointStore(Path(other) / "checkpoints")
            store.save(int(run.state.step), run.state, {})
            store.wait()
            store.close()
            if processes.is_main():
                (Path(other) / "split.json").write_text(json.dumps(parts(run.state)))


def parts(state):
    found = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        slices = {str(s) for s in leaf.sharding.devices_indices_map(leaf.shape).values()}
        if len(slices) > 1:
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = len(slices)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
