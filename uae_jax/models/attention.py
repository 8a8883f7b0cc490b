"""The one attention entry point: picks the kernel by platform and shape.

Letters: B batch, T queries, S keys, N query heads, K key/value heads (N is a multiple of K), H head width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.parallel import sharding

Array = jax.Array

KERNELS = ("auto", "xla", "cudnn", "splash")
_SPLASH_BLOCKS = (512, 384, 256, 128)  # lengths that splash works on at a time: whole TPU lanes
_PADDING = -(2**31)  # segment of places that only fill up


def check_kernel(name: str) -> None:
    """Raises `ValueError` where there is no such kernel."""
    if name not in KERNELS:
        raise ValueError(f"attention kernel is {name!r}, wanted one of {', '.join(KERNELS)}")


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    segment_ids: Array | tuple[Array, Array] | None = None,
    mask: Array | None = None,
    kv_lengths: Array | None = None,
    rows: str = "batch",
    kernel: str = "auto",
) -> Array:
    """softmax(q k^T / sqrt(H)) v with logits and softmax in float32.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      causal: query t sees keys s <= t.
      segment_ids: i32[B, T] for both sides, or (i32[B, T], i32[B, S]); only equal ids see each other. Padding is a
        segment of its own.
      mask: bool, broadcastable to [B, N, T, S]; True is seen. What segments cannot say, e.g. a half-filled cache.
      kv_lengths: i32[B], at least 1; keys from there on are not seen. Instead of `segment_ids`, and cheaper.
      rows: logical name of axis B.
      kernel: "auto", by shape and by the platform of the mesh in use (without a mesh, of the default device); "xla",
        which always works and holds [B, N, T, S] logits; "cudnn", flash attention on NVIDIA for 16-bit inputs, which
        "auto" takes where there are neither `mask` nor `segment_ids`, and which leaves calls with either to xla;
        "splash", flash attention on TPU, which pads lengths to multiples of 128 and leaves calls with `mask` to xla.

    On a mesh each device has its rows, heads and part of the queries, whose keys it gathers ("length", see
    `uae_jax.parallel.sharding`). Flash kernels do not split causal queries, which see the more keys the later they are.

    Returns:
      [B, T, N, H] in the dtype of q.

    Raises:
      ValueError: if a kernel is named that is unknown or cannot take these inputs, or if both `segment_ids` and
        `kv_lengths` are given.
    """
    check_kernel(kernel)
    if kernel == "auto":
        kernel = _choose(q, k, masked=mask is not None or segment_ids is not None)
    elif (why := _obstacle(kernel, q)) is not None:
        raise ValueError(f"attention kernel {kernel!r} cannot be used here: {why}; use 'auto' or 'xla'")
    if segment_ids is not None and kv_lengths is not None:
        raise ValueError("attention got segment_ids and kv_lengths, wanted at most one; put the lengths into the ids")
    pair = segment_ids if isinstance(segment_ids, tuple) or segment_ids is None else (segment_ids, segment_ids)
    if kernel == "splash" and mask is None:
        if kv_lengths is not None:
            seen = jnp.arange(k.shape[1]) < kv_lengths[:, None]
            pair = (jnp.ones(q.shape[:2], jnp.int32), seen.astype(jnp.int32))
        return _on_each_device(functools.partial(_splash, causal=causal), q, k, v, pair, rows, causal)
    if kernel == "cudnn" and mask is None and pair is None:
        return _on_each_device(functools.partial(_cudnn, causal=causal), q, k, v, kv_lengths, rows, causal)
    q = sharding.constrain(q, rows, "length", "act_heads", None)
    if pair is not None:
        same = (pair[0][:, :, None] == pair[1][:, None, :])[:, None]  # [B, 1, T, S]
        mask = same if mask is None else mask & same
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=kv_lengths, implementation="xla"
    )


def _choose(q: Array, k: Array, masked: bool) -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device  # what is compiled for, which need not be present
    platform = jax.default_backend() if device is None else device.platform
    if platform == "tpu" and min(q.shape[1], k.shape[1]) >= _SPLASH_BLOCKS[-1]:  # else it would be mostly padding
        return "splash"
    # cuDNN takes a mask only as a bias of [B, N, T, S] numbers, which is what a flash kernel is to save.
    if platform in ("gpu", "cuda") and not masked and _obstacle("cudnn", q) is None:
        return "cudnn"
    return "xla"


def _obstacle(kernel: str, q: Array) -> str | None:
    """Says why a kernel cannot take these inputs, or None."""
    if kernel == "cudnn":
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"inputs are {q.dtype}, wanted bfloat16 or float16"
        if q.shape[-1] % 8 or q.shape[-1] > 256:
            return f"head width is {q.shape[-1]}, wanted a multiple of 8 up to 256"
    return None


def _on_each_device(
    kernel: Callable[..., Array], q: Array, k: Array, v: Array, seen: Any, rows: str, causal: bool
) -> Array:
    """Runs a kernel that the partitioner cannot split: hands each device its rows, heads and queries.

    Args:
      kernel: of (q, k, v, seen).
      q, k, v, rows, causal: of `attention`.
      seen: None, lengths i32[B], or segments (i32[B, T], i32[B, S]).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q, k, v, seen)
    length = q.shape[1]
    where = None if causal else "length"
    if where is not None:  # picture and text together seldom divide: what fills up is 1 of thousands of queries
        parts = sharding.parts(where, mesh)
        q = _filled(q, parts)
        seen = (_filled(seen[0], parts, _PADDING), seen[1]) if isinstance(seen, tuple) else seen
    spec = functools.partial(sharding.partition_spec, mesh=mesh)
    keys = spec(k.shape, (rows, None, "act_heads", None))
    heads = None if keys[2] is None else "act_heads"  # keys that cannot be split over heads keep queries whole, too
    queries = spec(q.shape, (rows, where, heads, None))
    if isinstance(seen, tuple):
        seen_specs = (spec(seen[0].shape, (rows, where)), spec(seen[1].shape, (rows, None)))
    else:
        seen_specs = None if seen is None else spec(seen.shape, (rows,))
    sharded = jax.shard_map(
        kernel, mesh=mesh, in_specs=(queries, keys, keys, seen_specs), out_specs=queries, check_vma=False
    )
    return sharded(q, k, v, seen)[:, :length]


def _cudnn(q: Array, k: Array, v: Array, lengths: Array | None, *, causal: bool) -> Array:
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _splash(q: Array, k: Array, v: Array, segment_ids: tuple[Array, Array] | None, *, causal: bool) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, n = q.shape[1:3]
    block_q, block_kv = _block(length), _block(k.shape[1])
    if segment_ids is None and k.shape[1] % block_kv:
        segment_ids = tuple(jnp.zeros(x.shape[:2], jnp.int32) for x in (q, k))
    q, k, v = _filled(q, block_q), _filled(k, block_kv), _filled(v, block_kv)
    t, s = q.shape[1], k.shape[1]
    one = splash.CausalMask((t, s)) if causal else splash.FullMask((t, s))
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    run = splash.make_splash_mha_single_device(splash.MultiHeadMask([one] * n), block_sizes=blocks)
    heads_first = [x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v)]
    ids = None
    if segment_ids is not None:
        asking, asked = segment_ids
        ids = splash.SegmentIds(_filled(asking, block_q, _PADDING), _filled(asked, block_kv, _PADDING))
    out = jax.vmap(run, in_axes=(0, 0, 0, None if ids is None else 0))(*heads_first, ids)
    return out.swapaxes(1, 2)[:, :length].astype(q.dtype)


def _block(length: int) -> int:
    """The largest block that a length fills up to a sixteenth."""
    least = _rounded(length, _SPLASH_BLOCKS[-1])
    return next(block for block in _SPLASH_BLOCKS if _rounded(length, block) - least <= least // 16)


def _filled(x: Array, block: int, value: int = 0) -> Array:
    """Pads axis 1 to whole blocks."""
    extra = _rounded(x.shape[1], block) - x.shape[1]
    return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2), constant_values=value) if extra else x


def _rounded(length: int, block: int) -> int:
    return -(-length // block) * block
