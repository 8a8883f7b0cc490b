"""The one attention entry point: picks the kernel by platform and shape.

Letters: B batch, T queries, S keys, N query heads, K key/value heads (N is a multiple of K), H head width.
"""

import functools

import jax
import jax.numpy as jnp

from uae_jax.parallel import sharding

Array = jax.Array

KERNELS = ("auto", "xla", "cudnn", "splash")
_SPLASH_LANES = 128  # splash works on blocks of whole TPU lanes


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    segment_ids: Array | tuple[Array, Array] | None = None,
    mask: Array | None = None,
    kv_lengths: Array | None = None,
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
      kernel: "auto"; "xla", which always works and holds [B, N, T, S] logits; "cudnn", flash attention on NVIDIA for
        16-bit inputs; "splash", flash attention on TPU without `mask` for lengths in multiples of 128.

    Returns:
      [B, T, N, H] in the dtype of q.

    Raises:
      ValueError: if a kernel is named that is unknown or cannot take these inputs, or if both `segment_ids` and
        `kv_lengths` are given.
    """
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel is {kernel!r}, wanted one of {', '.join(KERNELS)}")
    if kernel == "auto":
        kernel = _choose(q, k, mask)
    elif (why := _obstacle(kernel, q, k, mask)) is not None:
        raise ValueError(f"attention kernel {kernel!r} cannot be used here: {why}; use 'auto' or 'xla'")
    if segment_ids is not None and kv_lengths is not None:
        raise ValueError("attention got segment_ids and kv_lengths, wanted at most one; put the lengths into the ids")
    pair = segment_ids if isinstance(segment_ids, tuple) or segment_ids is None else (segment_ids, segment_ids)
    q = sharding.constrain(q, "batch", "length", "act_heads", None)
    if kernel == "splash":
        if kv_lengths is not None:
            seen = jnp.arange(k.shape[1]) < kv_lengths[:, None]
            pair = (jnp.ones(q.shape[:2], jnp.int32), seen.astype(jnp.int32))
        return _splash(q, k, v, causal, pair)
    if pair is not None:
        same = (pair[0][:, :, None] == pair[1][:, None, :])[:, None]  # [B, 1, T, S]
        mask = same if mask is None else mask & same
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=kv_lengths, implementation=kernel
    )


def _choose(q: Array, k: Array, mask: Array | None) -> str:
    preferred = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend(), "xla")
    return preferred if _obstacle(preferred, q, k, mask) is None else "xla"


def _obstacle(kernel: str, q: Array, k: Array, mask: Array | None) -> str | None:
    """Says why a kernel cannot take these inputs, or None."""
    if kernel == "cudnn":
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"inputs are {q.dtype}, wanted bfloat16 or float16"
        if q.shape[-1] % 8 or q.shape[-1] > 256:
            return f"head width is {q.shape[-1]}, wanted a multiple of 8 up to 256"
    if kernel == "splash":
        if mask is not None:
            return "it takes causal order and segments, no free mask"
        if q.shape[1] % _SPLASH_LANES or k.shape[1] % _SPLASH_LANES:
            return f"lengths are {q.shape[1]} and {k.shape[1]}, wanted multiples of {_SPLASH_LANES}"
    return None


def _splash(q: Array, k: Array, v: Array, causal: bool, segment_ids: tuple[Array, Array] | None) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(_splash_local, causal=causal)
    if mesh.empty or mesh.size == 1:
        return run(q, k, v, segment_ids)
    # A Pallas call is opaque to the partitioner: hand each device its rows and heads.
    spec = functools.partial(sharding.partition_spec, mesh=mesh)
    heads = spec(k.shape, ("batch", None, "act_heads", None))
    if heads[2] is None:  # keys cannot be split over heads, so queries must not be either
        queries = spec(q.shape, ("batch", None, None, None))
    else:
        queries = spec(q.shape, ("batch", None, "act_heads", None))
    rows = None if segment_ids is None else tuple(spec(ids.shape, ("batch", None)) for ids in segment_ids)
    sharded = jax.shard_map(run, mesh=mesh, in_specs=(queries, heads, heads, rows), out_specs=queries, check_vma=False)
    return sharded(q, k, v, segment_ids)


def _splash_local(q: Array, k: Array, v: Array, segment_ids: tuple[Array, Array] | None, *, causal: bool) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    t, s, n = q.shape[1], k.shape[1], q.shape[2]
    one = splash.CausalMask((t, s)) if causal else splash.FullMask((t, s))
    block_q, block_kv = _block(t), _block(s)
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
    ids = None if segment_ids is None else splash.SegmentIds(*segment_ids)
    out = jax.vmap(run, in_axes=(0, 0, 0, None if ids is None else 0))(*heads_first, ids)
    return out.swapaxes(1, 2).astype(q.dtype)


def _block(length: int) -> int:
    return next(block for block in (512, 384, 256, 128) if length % block == 0)
