"""Adapters against PEFT itself, on a model that has every kind of linear layer."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import toy
from uae_jax.models import lora
from uae_jax.models.lora import LoRAConfig
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights import checkpoint, registry, transfer
from uae_jax.weights import peft as ours
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
safetensors_torch = pytest.importorskip("safetensors.torch")
parity = pytest.importorskip("tests.parity")
twin = pytest.importorskip("tests.weights.toy_torch")

CONFIG = toy.ToyConfig()
IDS, IMAGE = toy.inputs(CONFIG)
TARGETS = ["qkv", "up", "down", "head"]


def base(tmp_path):
    """The PyTorch model, and our parameters read from its state dict."""
    model = twin.ToyModel(CONFIG)
    safetensors_torch.save_file(model.state_dict(), tmp_path / "base.safetensors")
    tensors = open_checkpoint(tmp_path / "base.safetensors")
    params = transfer.load(toy.table(CONFIG), tensors, toy.ARCHITECTURE.abstract(CONFIG), source="base")
    return model, params


def wrap(model, seed=3, **options):
    """Wraps a model with PEFT, with noise in both factors (B would be zero)."""
    options = {"r": 2, "lora_alpha": 5, "target_modules": TARGETS} | options
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def torch_output(model):
    with torch.no_grad():
        return model(torch.from_numpy(IDS).long(), torch.from_numpy(IMAGE))


def our_output(params, config=None, adapter=None):
    return toy.run(CONFIG, params, IDS, IMAGE, **lora.collection(adapter, config))


def load(folder, **options):
    return ours.load_adapter(folder, toy.ARCHITECTURE, CONFIG, **options)


def save(folder, config, adapter, **options):
    ours.save_adapter(folder, adapter, config, toy.ARCHITECTURE, CONFIG, **options)


def changed(folder, **fields):
    """Edits an adapter's config in place."""
    path = folder / ours.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def load_in_peft(model, folder):
    """Loads into PEFT, failing on any key that is missing or not expected."""
    config = peft.LoraConfig.from_pretrained(folder)
    wrapped = peft.get_peft_model(model, config).eval()
    result = peft.set_peft_model_state_dict(wrapped, safetensors_torch.load_file(folder / "adapter_model.safetensors"))
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora_" in key] == []
    return wrapped


def test_the_toy_and_its_twin_agree(tmp_path):
    model, params = base(tmp_path)
    parity.assert_close(our_output(params), torch_output(model))


def test_an_adapter_of_peft_computes_the_same_here(tmp_path):
    model, params = base(tmp_path)
    plain = torch_output(model)
    wrapped = wrap(model)
    wrapped.save_pretrained(tmp_path / "adapter")
    config, adapter = load(tmp_path / "adapter")
    assert (config.rank, config.alpha, config.scale) == (2, 5.0, 2.5)
    assert config.targets == ("head", "layers/down", "layers/qkv", "layers/up")
    assert adapter["layers"]["qkv"]["a"].shape == (3, 8, 2) and adapter["layers"]["qkv"]["b"].shape == (3, 2, 3, 8)
    got, wanted = our_output(params, config, adapter), torch_output(wrapped)
    parity.assert_close(got, wanted)
    assert np.abs(np.asarray(wanted - plain)).max() > 0.1  # an adapter that does nothing would agree as well
    parity.assert_close(our_output(params), plain)  # and without it the model is the base


def test_merging_equals_merge_and_unload_and_unmerging_undoes_it(tmp_path):
    model, params = base(tmp_path)
    wrapped = wrap(model)
    wrapped.save_pretrained(tmp_path / "adapter")
    config, adapter = load(tmp_path / "adapter")
    merged = lora.merge(params, adapter, config)
    state = wrapped.merge_and_unload().state_dict()
    read = transfer.to_published(toy.table(CONFIG), merged)
    for key, value in state.items():
        # One product of inner width 2 and one sum in float32, in either order: some roundings of 6e-8.
        np.testing.assert_allclose(read(key), value.numpy(), rtol=1e-6, atol=1e-6, err_msg=key)
    parity.assert_close(our_output(merged), torch_output(wrapped.base_model.model))
    back = lora.unmerge(merged, adapter, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), back, params)


def test_round_trip_is_bit_identical(tmp_path):
    wrap(twin.ToyModel(CONFIG)).save_pretrained(tmp_path / "a")
    config, adapter = load(tmp_path / "a")
    save(tmp_path / "b", config, adapter, base_model="somebody/toy")
    one, two = (safetensors_torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert one.keys() == two.keys()
    assert all(one[key].numpy().tobytes() == two[key].numpy().tobytes() for key in one)
    again, tree = load(tmp_path / "b")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, tree, adapter)
    written = json.loads((tmp_path / "b" / ours.CONFIG).read_text())
    assert written == {
        "base_model_name_or_path": "somebody/toy",
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_alpha": 5,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["down", "head", "qkv", "up"],
        "task_type": None,
    }


@pytest.mark.parametrize("targets", [(".*(qkv|up)",), ("layers/down", "head"), ("head",)])
def test_what_we_save_loads_in_peft(tmp_path, targets):
    model, params = base(tmp_path)
    config = LoRAConfig(rank=3, alpha=4.5, targets=targets)
    adapter = lora.init(jax.random.key(0), params, config)
    adapter = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape), adapter)
    save(tmp_path / "adapter", config, adapter)
    wrapped = load_in_peft(model, tmp_path / "adapter")
    adapted = {name.split(".lora_A")[0] for name, _ in wrapped.named_parameters() if "lora_A" in name}
    keys = safetensors_torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert adapted == {key.split(".lora_A")[0] for key in keys if "lora_A" in key}  # target_modules hits exactly these
    parity.assert_close(our_output(params, config, adapter), torch_output(wrapped))
    # The way users load it.
    parity.assert_close(
        torch_output(peft.PeftModel.from_pretrained(twin.ToyModel(CONFIG), tmp_path / "adapter")), torch_output(wrapped)
    )


def test_layers_of_a_stack_that_have_no_adapter(tmp_path):
    model, params = base(tmp_path)
    wrapped = wrap(model, target_modules=["blocks.1.attn.qkv", "blocks.0.mlp.up"])
    wrapped.save_pretrained(tmp_path / "a")
    config, adapter = load(tmp_path / "a")
    parity.assert_close(our_output(params, config, adapter), torch_output(wrapped))
    qkv = adapter["layers"]["qkv"]
    for i in (0, 2):
        assert not np.asarray(qkv["a"])[i].any() and not np.asarray(qkv["b"])[i].any()
    assert set(adapter["layers"]) == {"qkv", "up"}

    def loss(tree):
        return jnp.sum(our_output(params, config, tree) ** 2)

    grads = jax.grad(loss)(adapter)["layers"]["qkv"]
    for i, moves in enumerate((False, True, False)):  # training leaves out what PEFT leaves out
        assert np.asarray(grads["a"])[i].any() == moves and np.asarray(grads["b"])[i].any() == moves
    save(tmp_path / "b", config, adapter)
    one, two = (safetensors_torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert one.keys() == two.keys()
    assert json.loads((tmp_path / "b" / ours.CONFIG).read_text())["target_modules"] == ["0.mlp.up", "1.attn.qkv"]
    parity.assert_close(torch_output(load_in_peft(twin.ToyModel(CONFIG), tmp_path / "b")), torch_output(wrapped))


def test_a_fresh_adapter_is_written_although_its_b_is_zero(tmp_path):
    params = toy.params(CONFIG)
    config = LoRAConfig(rank=2, alpha=2, targets=("layers/up",))
    save(tmp_path / "a", config, lora.init(jax.random.key(0), params, config))
    assert len(open_checkpoint(tmp_path / "a" / "adapter_model.safetensors")) == 2 * CONFIG.depth


def test_rank_stabilised_scale(tmp_path):
    model, params = base(tmp_path)
    wrapped = wrap(model, r=4, use_rslora=True)
    wrapped.save_pretrained(tmp_path / "a")
    config, adapter = load(tmp_path / "a")
    assert config.scale == pytest.approx(5 / math.sqrt(4))  # 5 / 4 without rslora
    parity.assert_close(our_output(params, config, adapter), torch_output(wrapped))


def test_adapter_dtypes(tmp_path):
    wrapped = wrap(twin.ToyModel(CONFIG))
    wrapped.to(torch.bfloat16).save_pretrained(tmp_path / "a")
    assert {leaf.dtype for leaf in jax.tree.leaves(load(tmp_path / "a")[1])} == {np.dtype(jnp.bfloat16)}
    config, adapter = load(tmp_path / "a", dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {np.dtype(np.float32)}
    save(tmp_path / "b", config, jax.tree.map(lambda x: x.astype(jnp.bfloat16), adapter))
    one, two = (safetensors_torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(one[key], two[key]) and two[key].dtype == torch.bfloat16 for key in one)


def test_an_adapter_lands_in_shards_like_its_kernels(tmp_path):
    wrap(twin.ToyModel(CONFIG)).save_pretrained(tmp_path / "a")
    _, whole = load(tmp_path / "a")
    _, split = load(tmp_path / "a", mesh=make_mesh(2, 2, 2))
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    # qkv is ("layers", "embed", None, "heads"): a [3, 8, 2] halves its width, b [3, 2, 3, 8] its heads, no one R.
    assert {shard.data.shape for shard in split["layers"]["qkv"]["a"].addressable_shards} == {(3, 4, 2)}
    assert {shard.data.shape for shard in split["layers"]["qkv"]["b"].addressable_shards} == {(3, 2, 3, 4)}


# State dicts of whole wrapped models, and other files.


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_whole_wrapped_state_dict_is_parted(tmp_path, prefix):
    model, params = base(tmp_path)
    plain = set(model.state_dict())
    wrapped = wrap(model)
    state = {f"{prefix}{key}": value for key, value in wrapped.state_dict().items()}
    assert any(".base_layer.weight" in key for key in state)
    state["projector.0.weight"] = torch.ones(2)  # what else the saved module held
    safetensors_torch.save_file(state, tmp_path / "whole.safetensors")
    adapter, rest = ours.split_wrapped(open_checkpoint(tmp_path / "whole.safetensors"))
    assert set(rest) == plain | {"projector.0.weight"}
    assert len(adapter) == 2 * (3 * CONFIG.depth + 1) and "blocks.0.attn.qkv.lora_A.weight" in adapter
    config, tree = ours.adapter_from_tensors(toy.ARCHITECTURE, CONFIG, adapter, source="whole", alpha=5)
    parity.assert_close(our_output(params, config, tree), torch_output(wrapped))
    np.testing.assert_array_equal(rest["head.weight"].read(), params["head"]["kernel"].T)


def test_a_wrapped_inner_model_gets_its_name_back():
    # PEFT around `outer.model`: "model.base_model.model.blocks..." is outer's "model.blocks...".
    arrays = adapter_arrays("inner.blocks.0.mlp.up", 8, 12)
    architecture = with_keys(lambda key: key.replace("blocks.", "model.inner.blocks."))
    _, tree = ours.adapter_from_tensors(architecture, CONFIG, arrays, source="x")
    np.testing.assert_array_equal(tree["layers"]["up"]["a"][0], arrays["inner.blocks.0.mlp.up.lora_A.weight"].read().T)


def test_two_adapters_in_one_file_are_refused(tmp_path):
    wrapped = wrap(twin.ToyModel(CONFIG))
    wrapped.add_adapter("other", peft.LoraConfig(r=2, target_modules=TARGETS))
    safetensors_torch.save_file(wrapped.state_dict(), tmp_path / "whole.safetensors")
    with pytest.raises(WeightsError, match="wanted one adapter"):
        ours.split_wrapped(open_checkpoint(tmp_path / "whole.safetensors"))


@pytest.mark.parametrize("metadata", [True, False])
def test_a_lora_file_of_diffusers(tmp_path, metadata):
    # diffusers keeps "transformer.<module>.lora_A.weight", and the config in the file's header or, earlier, nowhere.
    model, params = base(tmp_path)
    wrapped = wrap(model, lora_alpha=5 if metadata else 2)
    state = peft.get_peft_model_state_dict(wrapped)
    state = {key.replace("base_model.model.", "transformer."): value for key, value in state.items()}
    fields = {f"transformer.{key}": value for key, value in {"r": 2, "lora_alpha": 5, "bias": "none"}.items()}
    header = {"format": "pt"} | ({"lora_adapter_metadata": json.dumps(fields)} if metadata else {})
    file = tmp_path / "pytorch_lora_weights.safetensors"
    safetensors_torch.save_file(state, file, metadata=header)
    for path in (file, tmp_path):
        config, adapter = load(path)
        assert config.alpha == (5.0 if metadata else 2.0)
        parity.assert_close(our_output(params, config, adapter), torch_output(wrapped))


# The models that are trained with adapters.


def sd3(folder):
    """Original, ours, adapted modules, and a function from a PyTorch model to its output and the like for ours."""
    cases = pytest.importorskip("tests.models.test_sd3")
    options, size, tokens = cases.CASES["dual"]
    model, args = cases.torch_model(options), cases.inputs(size, tokens)
    # attn2 stands in some layers only; norm1.linear is fused from 9 parts there and 6 elsewhere.
    targets = ["to_q", "to_v", "to_out.0", "add_k_proj", "to_add_out", "norm1.linear", "ff.net.2"]
    loaded = parity.convert(model, folder)
    return model, loaded, targets, lambda m: cases.run_torch(m, *args), lambda **kw: loaded(*args, **kw)


def qwen(folder):
    cases = pytest.importorskip("tests.models.qwen2_5_vl_cases")
    model = cases.original("tied")
    loaded = parity.convert(model, folder)
    batch = cases.prompts(loaded.config)
    valid = batch.valid[..., None]
    return (
        model,
        loaded,
        ["q_proj", "o_proj", "gate_proj", "down_proj", "qkv", "merger.mlp.0"],
        lambda m: m(**batch.for_torch(), use_cache=False).logits * torch.tensor(valid),
        lambda **kw: loaded(*batch.for_jax(loaded.config), **kw)[0] * valid,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", [sd3, qwen])
def test_published_architectures(tmp_path, family):
    model, loaded, targets, theirs, mine = family(tmp_path / "base")
    architecture = loaded.architecture
    with torch.no_grad():
        plain = theirs(model)
        wrapped = wrap(model, target_modules=targets)
        wanted = theirs(wrapped)
        wrapped.save_pretrained(tmp_path / "a")
        config, adapter = ours.load_adapter(tmp_path / "a", architecture, loaded.config)
        parity.assert_close(mine(lora=lora.collection(adapter, config)), wanted)
        parity.assert_close(mine(), plain)
        assert parity.relative_error(plain, wanted) > 0.01
        ours.save_adapter(tmp_path / "b", adapter, config, architecture, loaded.config)
        one, two = (safetensors_torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        again = load_in_peft(wrapped.unload(), tmp_path / "b")
        parity.assert_close(theirs(again), wanted)


def test_qwen_is_saved_under_its_names_in_memory():
    # PEFT wraps the model in memory, whose names differ from the hub's; under the latter it would load no key.
    module_name = registry.find("Qwen2_5_VLForConditionalGeneration").module_name
    assert module_name("model.layers.0.self_attn.q_proj") == "model.language_model.layers.0.self_attn.q_proj"
    assert module_name("visual.blocks.0.attn.qkv") == "model.visual.blocks.0.attn.qkv"
    assert module_name("lm_head") == "lm_head"


# What is refused.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', wanted 'LORA'"),
        ({"bias": "all"}, "bias is 'all', wanted 'none'"),
        ({"use_dora": True}, "use_dora is True, which is not implemented"),
        ({"rank_pattern": {"up": 4}}, "rank_pattern is"),
        ({"alpha_pattern": {"up": 4}}, "alpha_pattern is"),
        ({"modules_to_save": ["head"]}, "modules_to_save is"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is"),
        ({"lora_bias": True}, "lora_bias is"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is"),
        ({"target_parameters": ["x"]}, "target_parameters is"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"an_option_of_tomorrow": 1}, "an_option_of_tomorrow is 1, which is not implemented"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base weights"),
        ({"r": 0}, "r is 0, wanted a positive integer"),
        ({"r": "2"}, "r is '2', wanted a positive integer"),
        ({"lora_alpha": None}, "lora_alpha is None, wanted a number"),
        ({"use_dora": True, "bias": "all"}, "bias is 'all', wanted 'none'; use_dora is True"),
    ],
)
def test_options_that_change_the_result_are_refused_by_name(tmp_path, fields, message):
    wrap(twin.ToyModel(CONFIG)).save_pretrained(tmp_path / "a")
    changed(tmp_path / "a", **fields)
    with pytest.raises(WeightsError, match=re.escape(f"{tmp_path / 'a' / ours.CONFIG}: {message}")):
        load(tmp_path / "a")


def adapter_arrays(module, width, features, rank=2) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    arrays = {
        f"{module}.lora_A.weight": np.asarray(rng.normal(size=(rank, width)), np.float32),
        f"{module}.lora_B.weight": np.asarray(rng.normal(size=(features, rank)), np.float32),
    }
    return {key: Tensor(key, "f", a.shape, a.dtype, lambda a=a: a) for key, a in arrays.items()}


def with_keys(rename) -> Architecture:
    """The toy under other published keys."""

    def table(config):
        return [dataclasses.replace(entry, key=rename(entry.key)) for entry in toy.table(config)]

    return dataclasses.replace(toy.ARCHITECTURE, table=table, canonical=lambda tensors, config: tensors)


def refusal(tensors, **options) -> str:
    with pytest.raises(WeightsError) as caught:
        ours.adapter_from_tensors(toy.ARCHITECTURE, CONFIG, tensors, source="the file", **options)
    assert str(caught.value).startswith("the file: ")
    return str(caught.value)


def test_all_keys_that_fit_nothing_are_listed_together():
    good = adapter_arrays("blocks.0.mlp.up", 8, 12)
    wrong = adapter_arrays("blocks.7.mlp.up", 8, 12) | adapter_arrays("embed", 8, 10) | adapter_arrays("norm", 8, 8)
    message = refusal(good | wrong)
    for module in ("blocks.7.mlp.up", "norm", "embed"):
        assert f"unexpected: {module}.lora_A.weight: {module} is no linear layer of ToyModel" in message
    assert "blocks.0" not in message
    assert "patch is a convolution" in refusal(adapter_arrays("patch", 12, 8))
    other = {
        "lm_head.weight": next(iter(good.values())),
        "blocks.0.mlp.up.lora_magnitude_vector.weight": good[next(iter(good))],
    }
    message = refusal(good | other)
    assert message.count("unexpected") == 2


def test_shapes_ranks_and_halves_that_do_not_fit():
    message = refusal(adapter_arrays("blocks.0.mlp.up", 9, 12))
    assert "blocks.0.mlp.up.lora_A.weight" in message and "got [2, 9] and [12, 2], wanted [2, 8] and [12, 2]" in message
    assert "wanted [3, 8] and [12, 3]" in refusal(adapter_arrays("blocks.0.mlp.up", 8, 12), rank=3)
    mixed = adapter_arrays("blocks.0.mlp.up", 8, 12) | adapter_arrays("blocks.1.mlp.up", 8, 12, rank=4)
    assert "got [4, 8] and [12, 4], wanted [2, 8] and [12, 2]" in refusal(mixed)
    half = adapter_arrays("blocks.0.mlp.up", 8, 12)
    del half["blocks.0.mlp.up.lora_B.weight"]
    assert "missing: blocks.0.mlp.up.lora_B.weight, needed beside blocks.0.mlp.up.lora_A.weight" in refusal(half)
    assert "no lora_A or lora_B tensor in it" in refusal({})


def test_folders_without_an_adapter_and_pickled_ones(tmp_path):
    with pytest.raises(WeightsError, match=r"no adapter in it, wanted adapter_config\.json or pytorch_lora_weights"):
        load(tmp_path)
    checkpoint.write_json(tmp_path / ours.CONFIG, {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors: missing"):
        load(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"adapter_model\.bin: a pickle file"):
        load(tmp_path)
    arrays = {key: tensor.read() for key, tensor in adapter_arrays("blocks.0.mlp.up", 8, 12).items()}
    safetensors_numpy.save_file(arrays, tmp_path / "adapter_model.safetensors")
    load(tmp_path)  # where both are there PEFT takes this one, too


def test_adapters_that_cannot_be_published_are_refused(tmp_path):
    params = toy.params(CONFIG)
    config = LoRAConfig(rank=2, alpha=2, targets=("patch", "head"))
    with pytest.raises(WeightsError, match="adapter: patch: no linear layer in the published layout"):
        save(tmp_path / "a", config, lora.init(jax.random.key(0), params, config))
    config = LoRAConfig(rank=2, alpha=2, targets=("head",))
    adapter = lora.init(jax.random.key(0), params, config)
    adapter["head"]["b"] = jnp.ones((2, 5))
    with pytest.raises(WeightsError, match=re.escape("head: got a [8, 2] and b [2, 5], which do not fit")):
        save(tmp_path / "a", config, adapter)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("adapted", "others", "wanted"),
    [
        ({"a.0.q", "a.1.q"}, {"a.0.k", "a.1.k"}, ["q"]),
        ({"text.0.q"}, {"image.0.q"}, ["text.0.q"]),  # q and 0.q would hit the image tower
        ({"a.0.to_out.0", "a.1.to_out.0"}, {"a.0.k"}, ["to_out.0"]),  # a bare number never stands alone
        ({"a.0.q"}, {"a.1.q", "a.10.q"}, ["0.q"]),  # by whole parts: "0.q" does not hit "10.q"
        ({"mlp.down"}, {"mlp.down.inner"}, ["down"]),
        ({"q.up"}, {"x.up.k"}, ["q.up"]),  # "up" is also the name of a container, which PEFT would try to wrap
        ({"q"}, {"x.q"}, "q"),  # every ending of "q" hits "x.q": an expression over whole names
        ({"q", "a.k"}, {"x.q"}, r"a\.k|q"),
    ],
)
def test_target_modules_hit_exactly_the_adapted(adapted, others, wanted):
    got = ours._targets(adapted, others)
    assert got == wanted
    config = peft.LoraConfig(target_modules=got)
    assert {
        name for name in adapted | others if peft.tuners.tuners_utils.check_target_module_exists(config, name)
    } == adapted
