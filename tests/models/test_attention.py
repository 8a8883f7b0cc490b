"""Attention against softmax(q k^T / sqrt(H)) v written out in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.models import attention as attention_file
from uae_jax.models.attention import KERNELS, _choose, attention
from uae_jax.parallel.mesh import make_mesh


def oracle(q, k, v, causal=False, segments=None, mask=None):
    """The definition, one query head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (b, t, n, h), s, groups = q.shape, k.shape[1], q.shape[2] // k.shape[2]
    seen = np.ones((b, n, t, s), bool)
    if causal:
        seen &= np.arange(s)[None, :] <= np.arange(t)[:, None]
    if segments is not None:
        rows, columns = segments if isinstance(segments, tuple) else (segments, segments)
        seen &= (np.asarray(rows)[:, :, None] == np.asarray(columns)[:, None, :])[:, None]
    if mask is not None:
        seen &= np.asarray(mask)
    out = np.zeros_like(q)
    for head in range(n):
        logits = np.einsum("bth,bsh->bts", q[:, :, head], k[:, :, head // groups]) / np.sqrt(h)
        logits = np.where(seen[:, head], logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[:, :, head] = np.einsum("bts,bsh->bth", weights / weights.sum(-1, keepdims=True), v[:, :, head // groups])
    return out


def make(b=2, t=6, s=6, n=4, k=4, h=8, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = ((b, t, n, h), (b, s, k, h), (b, s, k, h))
    return [jnp.asarray(rng.normal(size=shape) * 2, dtype) for shape in shapes]


def error(got, wanted):
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


SEGMENTS = np.asarray([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 0, 0]], np.int32)
CASES = {
    "plain": ({}, {}),
    "one key head for three": ({"n": 3, "k": 1}, {}),
    "two key heads for four": ({"n": 4, "k": 2}, {}),
    "causal": ({}, {"causal": True}),
    "causal, fewer queries than keys": ({"t": 3}, {"causal": True}),
    "causal, grouped": ({"n": 6, "k": 3}, {"causal": True}),
    "cross": ({"t": 2, "s": 9}, {}),
    "segments": ({}, {"segment_ids": SEGMENTS}),
    "segments and causal": ({"k": 2}, {"segment_ids": SEGMENTS, "causal": True}),
    "cross segments": ({"s": 3}, {"segment_ids": (SEGMENTS, np.asarray([[2, 1, 0], [0, 3, 3]], np.int32))}),
    "mask of a cache": ({"t": 1, "s": 5}, {"mask": np.asarray([1, 1, 1, 0, 0], bool)[None, None, None]}),
    "mask per row": ({"t": 1, "s": 3}, {"mask": np.asarray([[1, 0, 1], [0, 1, 1]], bool)[:, None, None]}),
    "mask and segments": ({}, {"segment_ids": SEGMENTS, "mask": np.tri(6, dtype=bool)[None, None]}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", ["auto", "xla"])
def test_equals_the_definition(case, kernel):
    sizes, options = CASES[case]
    q, k, v = make(**sizes)
    named = {"segments" if key == "segment_ids" else key: value for key, value in options.items()}
    got = jax.jit(functools.partial(attention, kernel=kernel, causal=options.get("causal", False)))(
        q, k, v, **{key: value for key, value in options.items() if key != "causal"}
    )
    assert got.dtype == q.dtype
    assert error(got, oracle(q, k, v, **named)) < 1e-6  # some sums of float32


@pytest.mark.parametrize("t", [1, 6])
def test_lengths_of_keys_equal_a_mask(t):
    q, k, v = make(t=t)
    lengths = np.asarray([1, 4], np.int32)
    mask = (np.arange(6) < lengths[:, None])[:, None, None]
    assert error(attention(q, k, v, kv_lengths=jnp.asarray(lengths)), oracle(q, k, v, mask=mask)) < 1e-6


def test_lengths_and_segments_together_are_refused():
    with pytest.raises(ValueError, match="attention got segment_ids and kv_lengths, wanted at most one"):
        attention(*make(), segment_ids=jnp.asarray(SEGMENTS), kv_lengths=jnp.asarray([1, 2]))


def test_half_precision_keeps_logits_in_full():
    # With logits in float32 only the weights and the result are rounded to 8 bits, by 0.4% at most each: 0.0020 is
    # measured. Logits reach 32 here, where bfloat16 holds multiples of 0.125: rounding them too gives 0.0070.
    q, k, v = (x.astype(jnp.bfloat16) for x in make(t=32, s=32, h=64))
    q = q * 2
    got = attention(q, k, v)
    assert got.dtype == jnp.bfloat16
    wanted = oracle(q, k, v)
    logits = np.einsum("btnh,bsnh->bnts", *(np.asarray(x, np.float64) for x in (q, k))) / 8
    assert np.abs(logits).max() > 30
    weights = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.bfloat16).astype(jnp.float32)), np.float64)
    wrong = np.einsum("bnts,bsnh->btnh", weights, np.asarray(v, np.float64))
    assert error(got, wanted) < 0.003 < 0.006 < error(wrong, wanted)


def test_what_is_not_seen_has_no_part_and_no_gradient():
    q, k, v = make()
    k, v = k.at[:, 4:].set(1e30), v.at[:, 4:].set(1e30)  # a cache's unfilled end may hold anything finite
    mask = (jnp.arange(6) < 4)[None, None, None]
    np.testing.assert_array_equal(
        attention(q, k, v, mask=mask), attention(q, k.at[:, 4:].set(0), v.at[:, 4:].set(0), mask=mask)
    )
    np.testing.assert_allclose(attention(q, k, v, mask=mask), attention(q, k[:, :4], v[:, :4]), rtol=1e-5, atol=1e-6)
    grads = np.asarray(jax.grad(lambda k: jnp.sum(attention(q, k, v, mask=mask) ** 2))(k))
    assert np.isfinite(grads).all()
    assert (grads[:, 4:] == 0).all() and (grads[:, :4] != 0).any()


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="attention kernel is 'flash', wanted one of auto, xla, cudnn, splash"):
        attention(*make(), kernel="flash")


@pytest.mark.parametrize(
    ("kernel", "sizes", "dtype", "why"),
    [
        ("cudnn", {}, np.float32, "inputs are float32, wanted bfloat16 or float16"),
        ("cudnn", {"h": 12}, jnp.bfloat16, "head width is 12, wanted a multiple of 8 up to 256"),
        ("cudnn", {"h": 264}, jnp.bfloat16, "head width is 264, wanted a multiple of 8 up to 256"),
    ],
)
def test_kernels_that_cannot_take_the_inputs_say_why(kernel, sizes, dtype, why):
    with pytest.raises(ValueError, match=f"attention kernel '{kernel}' cannot be used here: {why}"):
        attention(*make(**sizes, dtype=dtype), kernel=kernel)


def test_auto_takes_what_the_named_kernels_refuse():
    assert set(KERNELS) == {"auto", "xla", "cudnn", "splash"}
    q, k, v = make(h=12, dtype=jnp.float16)
    assert attention(q, k, v).shape == q.shape


@pytest.mark.parametrize(
    ("platform", "t", "dtype", "masked", "kernel"),
    [
        ("tpu", 128, np.float32, True, "splash"),
        ("tpu", 324, np.float32, False, "splash"),
        ("tpu", 64, np.float32, False, "xla"),  # half of a block would be padding
        ("gpu", 128, jnp.bfloat16, False, "cudnn"),
        ("gpu", 128, jnp.bfloat16, True, "xla"),  # a mask would be a bias of [B, N, T, S] numbers
        ("gpu", 128, np.float32, False, "xla"),
        ("cpu", 128, jnp.bfloat16, False, "xla"),
    ],
)
def test_auto_is_for_the_platform_of_the_mesh(platform, t, dtype, masked, kernel):
    """A program may be compiled for devices that are not there."""
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    q, k, _ = make(t=t, s=t, dtype=dtype)
    with jax.sharding.use_abstract_mesh(mesh):
        assert _choose(q, k, masked) == kernel


def test_sharded_equals_one_device():
    q, k, v = make(b=4, t=8, s=8, n=4, k=2)
    ids = jnp.asarray(np.arange(8)[None] // np.asarray([[3], [8], [2], [5]]), jnp.int32)
    wanted = attention(q, k, v, causal=True, segment_ids=ids)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        got = jax.jit(lambda q, k, v: attention(q, k, v, causal=True, segment_ids=ids))(q, k, v)
    assert error(got, wanted) < 1e-6


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the TPU kernel's program on the CPU, block by block, by the interpreter of Pallas."""
    splash = pytest.importorskip("jax.experimental.pallas.ops.tpu.splash_attention")
    make_kernel = functools.partial(splash.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha_single_device", make_kernel)


SPLASH = {
    "plain": ({"n": 2, "k": 2, "h": 64}, {}),
    "grouped": ({"n": 4, "k": 2, "h": 128}, {}),
    "causal": ({"t": 256, "s": 256, "n": 2, "k": 1, "h": 80}, {"causal": True}),
    "segments": ({"s": 256, "n": 2, "k": 2, "h": 64}, {"segment_ids": True}),
    # Lengths that fill no block are padded; what fills them must not be seen, and must not come back.
    "odd lengths": ({"t": 130, "s": 200, "n": 2, "k": 2, "h": 64}, {}),
    "odd lengths, causal": ({"t": 150, "s": 150, "n": 2, "k": 1, "h": 64}, {"causal": True}),
    "odd lengths, segments": ({"t": 100, "s": 300, "n": 2, "k": 2, "h": 64}, {"segment_ids": True}),
}


@pytest.mark.parametrize("case", SPLASH)
def test_splash_equals_the_definition(case, interpreted):
    sizes, options = SPLASH[case]
    q, k, v = make(**({"t": 128, "s": 128} | sizes))
    if options.get("segment_ids"):
        # Every segment of a query must have keys.
        rows, columns = (np.stack([np.arange(x.shape[1]) // 50, np.arange(x.shape[1]) // 90]) for x in (q, k))
        options = {"segment_ids": (jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32))}
    got = attention(q, k, v, kernel="splash", **options)
    wanted = oracle(q, k, v, options.get("causal", False), options.get("segment_ids"))
    assert error(got, wanted) < 5e-6


def test_splash_takes_lengths_and_leaves_masks_to_xla(interpreted):
    q, k, v = make(t=128, s=140, n=2, k=1, h=64)
    mask = (np.arange(140) < np.asarray([[3], [131]]))[:, None, None]
    wanted = oracle(q, k, v, mask=mask)
    assert error(attention(q, k, v, kv_lengths=jnp.asarray([3, 131]), kernel="splash"), wanted) < 5e-6
    assert error(attention(q, k, v, mask=mask, kernel="splash"), wanted) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(("t", "s"), [(128, 128), (140, 140), (100, 128)])  # in whole blocks, or padded to them
def test_splash_has_the_gradients_of_xla(interpreted, t, s):
    q, k, v = make(b=1, t=t, s=s, n=2, k=1, h=64)

    def grads(kernel):
        loss = lambda q, k, v: jnp.sum(attention(q, k, v, causal=True, kernel=kernel) ** 2)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    for got, wanted in zip(grads("splash"), grads("xla"), strict=True):
        assert error(got, wanted) < 1e-5


# Three key heads cannot be split in two, so their six query heads must not be: each half would see the wrong keys.
@pytest.mark.parametrize("heads", [(4, 2), (6, 3)])
def test_splash_on_a_mesh(interpreted, heads):
    n, k_heads = heads
    q, k, v = make(b=4, t=128, s=128, n=n, k=k_heads, h=64)
    ids = jnp.asarray(np.arange(128)[None] // np.asarray([[30], [128], [50], [70]]), jnp.int32)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        run = lambda *x: attention(*x, causal=True, segment_ids=ids, kernel="splash")  # noqa: E731
        got = jax.jit(run)(q, k, v)
    assert error(got, oracle(q, k, v, True, ids)) < 5e-6


def asked(case, t, s=140):
    """Options of attention, and what they come down to as a mask."""
    if case == "lengths":
        lengths = np.asarray([3, s])
        return {"kv_lengths": jnp.asarray(lengths)}, (np.arange(s) < lengths[:, None])[:, None, None]
    if case == "segments":
        ids = [np.stack([np.arange(n) // 70, np.arange(n) // 90]).astype(np.int32) for n in (t, s)]
        return {"segment_ids": tuple(map(jnp.asarray, ids))}, (ids[0][:, :, None] == ids[1][:, None])[:, None]
    return {"causal": case == "causal"}, None


@pytest.fixture
def kernels_see(interpreted, monkeypatch):
    """Local shapes (queries, keys) that flash kernels are called with; xla stands in for cuDNN, which needs a GPU."""
    seen = []
    for name, stand_in in (("_splash", attention_file._splash), ("_cudnn", None)):

        def kernel(q, k, v, which, *, causal, name=name, stand_in=stand_in):
            seen.append((q.shape, k.shape))
            if stand_in:
                return stand_in(q, k, v, which, causal=causal)
            return jax.nn.dot_product_attention(q, k, v, is_causal=causal, key_value_seq_lengths=which)

        monkeypatch.setattr(attention_file, name, kernel)
    return seen


@pytest.mark.parametrize(
    ("kernel", "case", "t", "local"),
    [
        ("splash", "plain", 260, 130),
        ("splash", "lengths", 131, 66),  # 131 do not divide: one query more, which comes back to nobody
        ("splash", "segments", 131, 66),
        ("splash", "causal", 140, 140),  # later queries see more keys: not split
        ("cudnn", "plain", 260, 130),
        ("cudnn", "lengths", 131, 66),
        ("cudnn", "causal", 140, 140),
    ],
)
def test_flash_kernels_split_queries_over_a_mesh(kernels_see, kernel, case, t, local):
    """cuDNN refuses to be split over queries by the partitioner, and a Pallas call would be repeated."""
    q, k, v = make(t=t, s=140, n=2, k=2, h=64, dtype=np.float32 if kernel == "splash" else jnp.bfloat16)
    options, mask = asked(case, t)
    causal = options.pop("causal", False)
    with jax.set_mesh(make_mesh(2, 1, 2, 2)):
        got = jax.jit(functools.partial(attention, kernel=kernel, causal=causal))(q, k, v, **options)
    assert kernels_see == [((1, local, 1, 64), (1, 140, 1, 64))]
    assert error(got, oracle(q, k, v, causal, mask=mask)) < (5e-6 if kernel == "splash" else 0.004)  # bfloat16


def test_gradients_of_queries_that_are_split(kernels_see):
    q, k, v = make(t=131, s=140, n=4, k=2, h=8, dtype=jnp.bfloat16)
    lengths = jnp.asarray([3, 140])

    def grads(kernel):
        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, kv_lengths=lengths, kernel=kernel).astype(jnp.float32) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    wanted = grads("xla")
    with jax.set_mesh(make_mesh(1, 2, 2, 2)):
        got = grads("cudnn")
    for one, other in zip(got, wanted, strict=True):
        assert error(one, other) < 0.01  # sums over devices in bfloat16, of a relative precision of 0.004
    assert kernels_see[0] == ((1, 66, 2, 8), (1, 140, 1, 8))


def test_the_real_cudnn_call_is_split(monkeypatch):
    """Its custom call, as it is lowered for GPUs, is of local shapes; with its version alone made up."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91300)
    q, k, v = make(t=131, s=140, h=64, dtype=jnp.bfloat16)
    run = functools.partial(attention, kernel="cudnn")
    loss = lambda *x: run(*x).astype(jnp.float32).sum()  # noqa: E731
    with jax.set_mesh(make_mesh(2, 1, 2, 2)):
        for f in (run, jax.grad(loss)):
            text = jax.jit(f).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
            calls = [line for line in text.splitlines() if "__cudnn$fmha" in line]
            assert calls and all("tensor<1x66x2x64xbf16>" in line for line in calls)
