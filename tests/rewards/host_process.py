"""One of two processes that ask a reward on the host: python -m tests.rewards.host_process MESH [COPIES]

MESH is JSON; with COPIES, each copy of the weights asks for its own rows. Prints one line of JSON: the reward of four
pairs, and the rows that each call was for.
"""

import json
import sys

import jax
import numpy as np

from uae_jax.parallel import global_arrays, processes, replicas
from uae_jax.parallel.mesh import make_mesh
from uae_jax.rewards import custom

calls = []


@custom.on_host
def first_value(reference, reconstruction):
    calls.append(len(reference))
    return reconstruction[:, 0, 0, 0]


def by_copy(reference, reconstruction):
    return replicas.on_each(lambda _, rows: ({}, first_value(*rows)), {}, (reference, reconstruction))[1]


def main(axes, copies):
    processes.start()
    mesh = make_mesh(**axes)
    images = np.tile(np.linspace(0.1, 0.4, 4, dtype=np.float32)[:, None, None, None], (1, 2, 2, 3))
    placed = global_arrays.put_rows(*own_rows(images, mesh), 4, mesh)
    with jax.set_mesh(mesh):
        reward = jax.jit(by_copy if copies else first_value)(placed, placed)
    print(
        json.dumps({"reward": np.float64(global_arrays.to_host(reward)).round(4).tolist(), "calls": calls}), flush=True
    )


def own_rows(images, mesh):
    rows = global_arrays.rows_here(mesh, len(images))
    return images[rows], rows


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), "COPIES" in sys.argv)
