"""Published tensors to native trees and back: values, dtypes, shardings, and one error for all that does not fit."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from tests.weights import toy
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights import checkpoint, registry, table, transfer
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import load_pretrained, parameter_count, save_pretrained
from uae_jax.weights.safetensors import Tensor, write_file
from uae_jax.weights.table import Entry

CONFIG = toy.ToyConfig()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, toy.NAME, toy.ARCHITECTURE)


def published(config=CONFIG, seed=0) -> dict[str, np.ndarray]:
    """A published checkpoint made without the code under test: every array drawn under its published key and shape."""
    rng = np.random.default_rng(seed)
    d, m = config.width, config.hidden
    shapes = {
        "embed.weight": (config.vocab, d),
        "scale": (),
        "patch.weight": (d, 3, 2, 2),
        "patch.bias": (d,),
        "head.weight": (config.out, d),
        "head.bias": (config.out,),
    }
    for i in range(config.depth):
        shapes |= {
            f"blocks.{i}.norm.weight": (d,),
            f"blocks.{i}.attn.qkv.weight": (3 * d, d),
            f"blocks.{i}.attn.qkv.bias": (3 * d,),
            f"blocks.{i}.mlp.up.weight": (m, d),
            f"blocks.{i}.mlp.up.bias": (m,),
            f"blocks.{i}.mlp.down.weight": (d, m),
        }
    return {key: np.asarray(rng.normal(size=shape), np.float32) for key, shape in shapes.items()}


def write(folder, arrays, config=CONFIG):
    folder.mkdir(exist_ok=True)
    checkpoint.write_json(folder / "config.json", toy.config_to_json(config))
    shapes = {key: (array.shape, array.dtype) for key, array in arrays.items()}
    write_file(folder / "model.safetensors", shapes, arrays.values())
    return folder


def in_memory(arrays) -> dict[str, Tensor]:
    return {
        key: Tensor(key, "memory", array.shape, array.dtype, lambda array=array: array) for key, array in arrays.items()
    }


def refusal(arrays) -> str:
    with pytest.raises(WeightsError) as caught:
        transfer.load(toy.table(CONFIG), in_memory(arrays), toy.ARCHITECTURE.abstract(CONFIG), source="the checkpoint")
    return str(caught.value)


@pytest.fixture(params=[transfer._SMALL, 0], ids=["on the host", "on the devices"], autouse=True)
def small(request, monkeypatch):
    """Where stacks are put together: all of these are small."""
    monkeypatch.setattr(transfer, "_SMALL", request.param)


def test_every_value_lands_where_the_layout_says(tmp_path):
    arrays = published()
    params = load_pretrained(write(tmp_path / "a", arrays)).params
    d = CONFIG.width
    np.testing.assert_array_equal(params["embed"]["embedding"], arrays["embed.weight"])
    assert params["scale"].shape == () and params["scale"] == arrays["scale"]
    np.testing.assert_array_equal(params["head"]["kernel"], arrays["head.weight"].T)
    for i in range(CONFIG.depth):
        np.testing.assert_array_equal(params["layers"]["up"]["kernel"][i], arrays[f"blocks.{i}.mlp.up.weight"].T)
        for part in range(3):  # PyTorch keeps query, key and value as three runs of rows
            rows = arrays[f"blocks.{i}.attn.qkv.weight"][part * d : (part + 1) * d]
            np.testing.assert_array_equal(params["layers"]["qkv"]["kernel"][i, :, part], rows.T)
            rows = arrays[f"blocks.{i}.attn.qkv.bias"][part * d : (part + 1) * d]
            np.testing.assert_array_equal(params["layers"]["qkv"]["bias"][i, part], rows)
    # Patch kernels are read as (row, column, channel), PyTorch's stand as (out, channel, row, column).
    kernel = params["patch"]["kernel"].reshape(2, 2, 3, d)
    np.testing.assert_array_equal(kernel[1, 0, 2], arrays["patch.weight"][:, 2, 1, 0])


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 700])
def test_round_trip_is_bit_identical(tmp_path, max_shard_bytes):
    arrays = published()
    model = load_pretrained(write(tmp_path / "a", arrays))
    save_pretrained(model, tmp_path / "b", max_shard_bytes=max_shard_bytes)
    found = open_checkpoint(tmp_path / "b")
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert found[key].shape == array.shape and found[key].read().tobytes() == array.tobytes(), key
    again = load_pretrained(tmp_path / "b")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize(
    "layout",
    [
        (table.LINEAR, (6, 4)),
        (table.CONV, (6, 4, 3, 2)),
        (table.fused(3), (6, 4)),
        (table.fused_bias(3), (6,)),
        (table.patch(3, 2), (5, 3, 2, 2)),
        (table.flat_patch(3, 2, 2), (5, 3, 2, 2)),
    ],
    ids=["linear", "conv", "fused", "fused_bias", "patch", "flat_patch"],
)
def test_layouts_undo_themselves(layout):
    layout, shape = layout
    array = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(layout.to_published(layout.to_native(array)), array)


def test_floating_dtypes_are_kept_or_cast(tmp_path):
    arrays = {key: value.astype(ml_dtypes.bfloat16) for key, value in published().items()}
    folder = write(tmp_path / "a", arrays)
    kept = load_pretrained(folder).params
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(jnp.bfloat16)}
    cast = load_pretrained(folder, dtype=jnp.float32).params
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b), kept, cast)


@pytest.mark.parametrize("first", [0, 1])
def test_a_stack_of_mixed_dtypes_takes_the_one_that_holds_all(first):
    # Layer 0 in bfloat16 and layer 1 in float32, or the reverse: to take the first's would round layer 1.
    arrays = published()
    arrays[f"blocks.{first}.mlp.up.weight"] = arrays[f"blocks.{first}.mlp.up.weight"].astype(ml_dtypes.bfloat16)
    params = transfer.load(toy.table(CONFIG), in_memory(arrays), toy.ARCHITECTURE.abstract(CONFIG), source="x")
    kernel = params["layers"]["up"]["kernel"]
    assert kernel.dtype == np.float32
    for i in range(CONFIG.depth):
        np.testing.assert_array_equal(kernel[i], arrays[f"blocks.{i}.mlp.up.weight"].T.astype(np.float32))


def test_target_dtype():
    bf16, f16, f32, f64, i64 = (np.dtype(t) for t in (ml_dtypes.bfloat16, "float16", "float32", "float64", "int64"))
    assert transfer.target_dtype([bf16, f16], None) == f32  # neither holds the other
    assert transfer.target_dtype([f64], None) == f32  # JAX has no 64 bits unless told so
    assert transfer.target_dtype([f32], bf16) == bf16
    assert transfer.target_dtype([i64], bf16) == np.dtype(np.int32)  # integers are no weights to be rounded


def test_all_that_does_not_fit_is_listed_in_one_error():
    arrays = published()
    del arrays["blocks.1.mlp.up.bias"]
    arrays["blocks.9.mlp.up.bias"] = np.zeros(3, np.float32)
    arrays["head.weight"] = np.zeros((2, 2), np.float32)
    arrays["head.bias"] = np.zeros(6, np.int32)
    message = refusal(arrays)
    assert message.startswith("the checkpoint: ")
    for part in (
        "missing: blocks.1.mlp.up.bias [12], needed for layers/up/bias",
        "unexpected: blocks.9.mlp.up.bias [3]",
        "shape: head.weight in memory: got [2, 2], wanted [6, 8]",
        "dtype: head.bias in memory: got int32, wanted a floating type of 16 bits or more",
    ):
        assert part in message
    assert message.count(";") == 3  # and nothing else


def test_a_scalar_is_no_vector_of_one():
    arrays = published()
    arrays["scale"] = arrays["scale"].reshape(1)
    assert "shape: scale in memory: got [1], wanted []" in refusal(arrays)


def test_eight_bit_floats_are_refused():
    # They are published with scales, and without them they are numbers of no meaning.
    arrays = published()
    arrays["head.bias"] = arrays["head.bias"].astype(ml_dtypes.float8_e4m3fn)
    assert "head.bias in memory: got float8_e4m3fn, wanted a floating type" in refusal(arrays)


def test_nothing_is_read_before_all_is_checked():
    arrays = in_memory(published())
    read = []
    spied = {key: dataclasses.replace(tensor, read=lambda key=key: read.append(key)) for key, tensor in arrays.items()}
    del spied["head.bias"]
    with pytest.raises(WeightsError, match=r"missing: head\.bias"):
        transfer.load(toy.table(CONFIG), spied, toy.ARCHITECTURE.abstract(CONFIG), source="x")
    assert read == []


def test_a_table_that_disagrees_with_the_model_is_refused():
    abstract, entries = toy.ARCHITECTURE.abstract(CONFIG), toy.table(CONFIG)
    tensors = in_memory(published())
    for wrong, message in (
        (entries[1:], "weight table and model disagree on embed/embedding"),
        ([*entries, Entry("ghost", "ghost")], "weight table and model disagree on ghost"),
        ([*entries, Entry("scale", "other")], "weight table and model disagree on scale"),
        ([*entries[1:], Entry("embed/embedding", "scale")], "weight table gives two parameters one key: scale"),
        (
            [dataclasses.replace(entry, key=entry.key.replace("{}", "0")) for entry in entries],
            "two parameters one key: blocks.0.attn.qkv.bias, blocks.0.attn.qkv.weight",
        ),
    ):
        with pytest.raises(WeightsError, match=re.escape(message)):
            transfer.check(wrong, tensors, abstract, "x")


def test_progress_is_called_with_every_tensors_bytes(tmp_path):
    arrays = published()
    seen = []
    load_pretrained(write(tmp_path / "a", arrays), dtype=jnp.bfloat16, progress=seen.append)
    # Once per tensor, with the bytes that were read from disk and not those that they became.
    assert sorted(seen) == sorted(array.nbytes for array in arrays.values())
    model = load_pretrained(tmp_path / "a")
    assert sum(seen) == 4 * parameter_count(model.params)


def test_parameters_land_in_their_shards(tmp_path):
    folder = write(tmp_path / "a", published())
    whole = load_pretrained(folder).params
    mesh = make_mesh(2, 2, 2)
    split = load_pretrained(folder, mesh=mesh).params
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    flat = traverse_util.flatten_dict(split, sep="/")
    assert all(leaf.sharding.mesh == mesh for leaf in flat.values())
    # [3 layers, 8 wide, 12 hidden] under ("layers", "embed", "mlp"): halved over fsdp and over tensor.
    up = flat["layers/up/kernel"]
    assert up.sharding.spec == jax.sharding.PartitionSpec(None, ("fsdp",), ("tensor",))
    assert {shard.data.shape for shard in up.addressable_shards} == {(3, 4, 6)}
    # [10 words, 8 wide] under ("vocab", "embed"): tensor halves 10, 5 is odd, so fsdp is left to the width.
    assert {shard.data.shape for shard in flat["embed/embedding"].addressable_shards} == {(5, 4)}
    assert {shard.data.shape for shard in flat["scale"].addressable_shards} == {()}


def test_a_sharded_model_is_saved_like_a_whole_one(tmp_path):
    arrays = published()
    model = load_pretrained(write(tmp_path / "a", arrays), mesh=make_mesh(2, 2, 2))
    save_pretrained(model, tmp_path / "b")
    for key, tensor in open_checkpoint(tmp_path / "b").items():
        assert tensor.read().tobytes() == arrays[key].tobytes()
    # No parameter keeps the host copy that saving made of it: that would be a second model by the end.
    assert all(getattr(leaf, "_npy_value", None) is None for leaf in jax.tree.leaves(model.params))


def test_a_split_layer_axis_is_refused(tmp_path):
    folder = write(tmp_path / "a", published(toy.ToyConfig(depth=2)), toy.ToyConfig(depth=2))
    rules = {name: () for name in ("embed", "heads", "mlp", "vocab")} | {"layers": ("data",)}
    with pytest.raises(ValueError, match="map logical axis 'layers' to no mesh axis"):
        load_pretrained(folder, mesh=make_mesh(2, 2, 2), rules=rules)


def test_saving_keeps_the_dtype_and_refuses_to_overwrite(tmp_path):
    model = Pretrained(toy.ARCHITECTURE, CONFIG, toy.params(CONFIG, dtype=jnp.bfloat16))
    save_pretrained(model, tmp_path / "a")
    assert {tensor.dtype for tensor in open_checkpoint(tmp_path / "a").values()} == {np.dtype(ml_dtypes.bfloat16)}
    with pytest.raises(FileExistsError):
        save_pretrained(model, tmp_path / "a")
    save_pretrained(model, tmp_path / "a", force=True)


def test_config_options_that_are_not_implemented_are_refused(tmp_path):
    folder = write(tmp_path / "a", published())
    checkpoint.write_json(folder / "config.json", toy.config_to_json(CONFIG) | {"activation": "relu"})
    with pytest.raises(WeightsError, match="activation is 'relu', wanted 'silu'"):
        load_pretrained(folder)
