"""What each copy of the weights does by itself, and what of it is sent when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.batching import place
from uae_jax.models.attention import attention
from uae_jax.parallel import replicas, sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.plan.collectives import collectives

LAYERS, WIDTH, ROWS = 3, 16, 32


def weights():
    return jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / 4


def rows():
    return np.asarray(jax.random.normal(jax.random.key(1), (ROWS, WIDTH)))


def loss(w, x):
    def layer(x, w):
        return sharding.constrain(jnp.tanh(x @ w), "batch", None), None

    return jnp.square(jax.lax.scan(layer, x, w)[0]).mean(axis=1)


def gradient(w, x, apart=True):
    """(mean, gradient), in four micro-batches, through a loop over layers; and what each row gave."""

    def own(w, x):
        def body(total, part):
            (value, each), grad = jax.value_and_grad(lambda w: (loss(w, part).mean(), loss(w, part)), has_aux=True)(w)
            return jax.tree.map(jnp.add, total, (value / 4, grad / 4)), each

        micro = x.reshape(-1, 4, x.shape[-1]).swapaxes(0, 1)
        means, each = jax.lax.scan(body, (0.0, jnp.zeros_like(w)), micro)
        return means, each.swapaxes(0, 1).reshape(-1)

    return replicas.on_each(own, w, x) if apart else own(w, x)


def on(mesh, function):
    with jax.set_mesh(mesh):
        w = jax.device_put(weights(), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp")))
        program = jax.jit(function).lower(w, place(rows(), mesh)).compile()
        return program(w, place(rows(), mesh)), program.as_text()


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}], ids=str)
def test_copies_agree_with_one(sizes):
    (means, each), _ = on(make_mesh(**sizes), gradient)
    (value, grad), wanted = gradient(weights(), rows())  # no mesh: nothing is split
    np.testing.assert_allclose(means[0], value, rtol=1e-6)
    np.testing.assert_allclose(means[1], grad, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(each, wanted, rtol=1e-5)  # in the order of the rows


def test_gradients_are_sent_once():
    """Not in every layer of every micro-batch, as the partitioner has it."""
    mesh = make_mesh(data=8)
    found = {apart: collectives(on(mesh, functools.partial(gradient, apart=apart))[1]) for apart in (True, False)}
    assert sum(each.in_loops for each in found[False]) > 0  # else there is nothing to save
    assert sum(each.in_loops for each in found[True]) == 0
    assert [(each.kind, each.largest) for each in found[True]] == [("all-reduce", 4 * LAYERS * WIDTH * WIDTH)]


def test_all_copies_decide_alike():
    mesh = make_mesh(data=4, fsdp=2)

    def own(_, x):
        return {}, jnp.full(len(x), sharding.largest(x))

    (_, largest), _ = on(mesh, lambda w, x: replicas.on_each(own, w, x[:, 0]))
    np.testing.assert_array_equal(largest, np.full(ROWS, rows()[:, 0].max()))


def test_flash_kernels_are_given_what_is_left_of_the_mesh(monkeypatch):
    """A kernel that the partitioner cannot split, on a mesh of which one axis is taken."""

    def kernel(q, k, v, seen, *, causal):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)

    monkeypatch.setattr("uae_jax.models.attention._splash", kernel)
    q = np.asarray(jax.random.normal(jax.random.key(2), (8, 8, 4, 8)))

    def own(_, q):
        value = lambda q: attention(q, q, q, kernel="splash")  # noqa: E731
        return {}, (value(q), jax.grad(lambda q: jnp.square(value(q)).sum())(q))

    wanted = own(None, q)[1]
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        _, got = jax.jit(lambda q: replicas.on_each(own, {}, q))(place(q, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)


def test_the_real_cudnn_call_is_of_local_shapes(monkeypatch):
    """As it is lowered for GPUs, within a copy, with its gradient; its version alone is made up."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91300)
    q, lengths = jnp.ones((4, 132, 4, 64), jnp.bfloat16), jnp.full(4, 100)

    def own(scale, some):
        q, lengths = some
        mixed = lambda scale: attention(scale * q, q, q, kv_lengths=lengths, kernel="cudnn")  # noqa: E731
        return jax.grad(lambda scale: mixed(scale).astype(jnp.float32).mean())(scale), lengths

    with jax.set_mesh(make_mesh(data=2, fsdp=2, sequence=2)):
        program = jax.jit(lambda *given: replicas.on_each(own, *given))
        lowered = program.trace(jnp.bfloat16(1), (q, lengths)).lower(lowering_platforms=("cuda",))
    calls = [line for line in lowered.as_text().splitlines() if "__cudnn$fmha" in line]
    assert len(calls) == 2 and all("tensor<1x66x4x64xbf16>" in line for line in calls)
