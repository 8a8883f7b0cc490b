"""The projector is Linear, exact GELU, Linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from uae_jax.models.projector import LOGICAL_AXES, Projector, ProjectorConfig, example_inputs
from uae_jax.models.runtime import Runtime
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh

SMALL = ProjectorConfig(width=16, hidden=24, out=8)
X = np.random.default_rng(0).normal(size=(4, 6, SMALL.width)).astype(np.float32)


def init(config):
    return Projector(config).init(jax.random.key(0), *(jnp.zeros(x.shape, x.dtype) for x in example_inputs(config)))


def test_full_size_without_memory():
    shapes = jax.eval_shape(lambda: init(ProjectorConfig()))["params"]
    # 2048 x 8192 + 8192 + 8192 x 4096 + 4096
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 50_343_936
    out = jax.eval_shape(Projector(ProjectorConfig()).apply, {"params": shapes}, jnp.zeros((1, 3, 2048)))
    assert out.shape == (1, 3, 4096)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_pytorch(dtype):
    torch = pytest.importorskip("torch")
    parity = pytest.importorskip("tests.parity")
    torch.manual_seed(0)
    original = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 8))
    # Large enough inputs that the tanh form of GELU would differ by 1e-4.
    x = 2 * X
    with torch.no_grad():
        wanted = original(torch.from_numpy(x))
    names = {"up": original[0], "down": original[2]}
    params = {
        name: {"kernel": jnp.asarray(layer.weight.detach().numpy().T), "bias": jnp.asarray(layer.bias.detach().numpy())}
        for name, layer in names.items()
    }
    got = Projector(SMALL, Runtime(dtype=dtype)).apply({"params": params}, x)
    assert got.dtype == dtype
    parity.assert_close(got, wanted, tolerance=parity.TOLERANCE if dtype == "float32" else 0.01)


def test_logical_axes_name_every_axis():
    params = init(SMALL)["params"]
    flat = traverse_util.flatten_dict(params, sep="/")
    axes = traverse_util.flatten_dict(LOGICAL_AXES.tree(params), sep="/")
    assert {path: len(names) for path, names in axes.items()} == {path: leaf.ndim for path, leaf in flat.items()}


def test_sharded_equals_one_device():
    params = init(SMALL)["params"]
    wanted = Projector(SMALL).apply({"params": params}, X)
    mesh = make_mesh(2, 2, 2)
    placed = jax.device_put(params, sharding.shardings(params, LOGICAL_AXES.tree(params), mesh))
    assert {shard.data.shape for shard in placed["up"]["kernel"].addressable_shards} == {(8, 12)}
    with jax.set_mesh(mesh):
        got = jax.jit(Projector(SMALL).apply)({"params": placed}, X)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
