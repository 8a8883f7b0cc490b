"""CLIP's files: config.json, both key layouts, round trips, sizes of the published models."""

import collections
import dataclasses
import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

import jax
import numpy as np
from flax import traverse_util

from tests.models import test_clip as small
from tests.parity import Loaded, assert_close
from uae_jax import cli
from uae_jax.models import clip as models
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.rewards.scorers import Scorer
from uae_jax.weights import clip, registry
from uae_jax.weights.checkpoint import open_checkpoint
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import from_tensors, load_pretrained, parameter_count, save_pretrained
from uae_jax.weights.transfer import check

# Architecture -> small models of transformers, and their inputs for transformers.
MODELS = {
    "CLIPModel": [lambda v=v, t=t: small.clip_model(v, t) for v, t in small.BOTH],
    "CLIPVisionModelWithProjection": [lambda c=c: small.vision_model(c) for c in small.VISION],
    "CLIPTextModelWithProjection": [lambda c=c: small.text_model(c) for c in small.TEXT],
    "CLIPVisionModel": [lambda: small.vision_model("quick_gelu", projected=False)],
    "CLIPTextModel": [lambda: small.text_model("legacy_end", projected=False)],
}
CASES = [(name, i) for name, cases in MODELS.items() for i in range(len(cases))]


def inputs_of(name, i):
    """Keyword inputs of transformers for case i of an architecture."""
    result = {}
    if "Text" not in name:
        result["pixel_values"] = small.pixels(small.images(list(small.VISION)[i]))
    if "Vision" not in name:
        result["input_ids"] = torch.as_tensor(small.texts(list(small.TEXT)[i]))
    return result


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert (tensor.shape, tensor.dtype) == (second[key].shape, second[key].dtype), key
        assert tensor.read().tobytes() == second[key].read().tobytes(), key


@pytest.mark.parametrize("name, i", CASES)
def test_published_to_native_to_published_keeps_every_byte(name, i, tmp_path):
    model = MODELS[name][i]()
    model.save_pretrained(tmp_path / "a")
    loaded = load_pretrained(tmp_path / "a")
    assert loaded.architecture.name == name
    save_pretrained(loaded, tmp_path / "b")
    assert_same_tensors(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))

    again, info = type(model).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    inputs = inputs_of(name, i)
    with torch.no_grad():
        wanted, got = model(**inputs), again.eval()(**inputs)
    # All bytes and options are the same, so is every number.
    for key in wanted.keys() - {"text_model_output", "vision_model_output"}:
        np.testing.assert_array_equal(got[key].numpy(), wanted[key].numpy(), err_msg=key)


@pytest.mark.slow
def test_half_precision_files_keep_their_dtype(tmp_path):
    small.clip_model("quick_gelu", "legacy_end").to(torch.bfloat16).save_pretrained(tmp_path / "a")
    loaded = load_pretrained(tmp_path / "a")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    save_pretrained(loaded, tmp_path / "b")
    assert_same_tensors(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))


@pytest.mark.parametrize(
    "architecture, config, count",
    [
        # Tables, patches or tokens, layers of 4 D^2 + 2 D F + 9 D + F, norms, projection; e.g. the image tower:
        # 1024 + 257 * 1024 + 588 * 1024 + 24 * 12596224 + 4 * 1024 + 1024 * 768.
        (clip.VISION_WITH_PROJECTION, models.vision_l14(), 303_966_208),
        (clip.VISION, dataclasses.replace(models.vision_l14(), projection=None), 303_966_208 - 1024 * 768),
        (clip.TEXT, dataclasses.replace(models.text_l14(), projection=None), 123_060_480),
        (clip.TEXT_WITH_PROJECTION, models.text_l14(), 123_060_480 + 768 * 768),
        (clip.TEXT_WITH_PROJECTION, models.text_big_g(), 694_659_840),
        (clip.MODEL, models.clip_l14(), 303_966_208 + 123_060_480 + 768 * 768 + 1),
        # 171 positions more, 768 wide.
        (clip.MODEL, models.longclip_l14(), 303_966_208 + 123_060_480 + 768 * 768 + 1 + 171 * 768),
    ],
)
def test_full_sizes(architecture, config, count):
    abstract = architecture.abstract(config)
    assert parameter_count(abstract) == count
    paths = [entry.path for entry in architecture.table(config)]
    assert sorted(paths) == sorted(traverse_util.flatten_dict(abstract, sep="/"))
    # transformers makes the same model of our config.json.
    written = architecture.config_to_json(config)
    kind = getattr(transformers, architecture.name)
    with torch.device("meta"):
        theirs = kind(kind.config_class.from_dict(json.loads(json.dumps(written))))
    assert sum(p.numel() for p in theirs.parameters()) == count
    assert architecture.config_from_json(written) == config


@pytest.mark.parametrize("architecture, config", [(clip.MODEL, models.longclip_l14()),
                                                  (clip.VISION, models.vision_l14()),
                                                  (clip.TEXT_WITH_PROJECTION, models.text_big_g())])  # fmt: skip
def test_every_axis_has_a_name_and_wide_matrices_are_split(architecture, config):
    abstract = architecture.abstract(config)
    axes = traverse_util.flatten_dict(architecture.logical_axes.tree(abstract), sep="/")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for path, leaf in traverse_util.flatten_dict(abstract, sep="/").items():
        assert len(axes[path]) == leaf.ndim, path
        spec = sharding.partition_spec(leaf.shape, axes[path], mesh)
        part = jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape)
        if path.endswith("tokens") or (sharding.is_stacked(path) and path.endswith("kernel")):
            assert np.prod(part) * 4 == leaf.size, path


# config.json

HUB = {  # openai/clip-vit-large-patch14, without the settings of text generation that it repeats
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu",
        "hidden_size": 768, "intermediate_size": 3072, "is_decoder": False, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "pruned_heads": {}, "vocab_size": 49408,
    },
    "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                         "num_hidden_layers": 12, "projection_dim": 768},
    "torch_dtype": "float32",
    "vision_config": {
        "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": 1024, "image_size": 224,
        "intermediate_size": 4096, "layer_norm_eps": 1e-05, "num_attention_heads": 16, "num_channels": 3,
        "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
    },
    "vision_config_dict": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                           "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
}  # fmt: skip


def sizes(text, vision, projection):
    """Our config, of transformers' two."""
    shared = lambda c: dict(  # noqa: E731
        width=c.hidden_size, hidden=c.intermediate_size, depth=c.num_hidden_layers, heads=c.num_attention_heads,
        activation=c.hidden_act, epsilon=c.layer_norm_eps, projection=projection,
    )  # fmt: skip
    return models.CLIPConfig(
        models.CLIPVisionConfig(image_size=vision.image_size, patch_size=vision.patch_size, **shared(vision)),
        models.CLIPTextConfig(
            vocab=text.vocab_size,
            positions=text.max_position_embeddings,
            eos_token_id=text.eos_token_id,
            **shared(text),
        ),
        projection,
    )


@pytest.mark.parametrize(
    "published",
    [
        HUB,
        {k: v for k, v in HUB.items() if not k.endswith("_dict")},
        {},
        {"text_config": None, "vision_config": {"patch_size": 16}},
        {"projection_dim": 640, "text_config": {"hidden_size": 640, "projection_dim": 99, "hidden_act": "gelu"}},
        # The older form wins, its silence included: heads fall back to 8, the end token to 49407.
        {"text_config": {"hidden_size": 96, "num_attention_heads": 3, "eos_token_id": 2, "vocab_size": 50},
         "text_config_dict": {"hidden_size": 64}},
        {"vision_config": {"image_size": 336, "num_hidden_layers": 3}, "vision_config_dict": {"patch_size": 16}},
    ],
)  # fmt: skip
def test_config_json_is_read_as_transformers_reads_it(published):
    theirs = transformers.CLIPConfig.from_dict(json.loads(json.dumps(published)))
    ours = clip.config_from_json(published)
    assert ours == sizes(theirs.text_config, theirs.vision_config, theirs.projection_dim)
    assert clip.config_from_json(clip.config_to_json(ours)) == ours


def test_hub_config_is_the_cited_size():
    config = clip.config_from_json(HUB)
    # Read as transformers reads it, the text ends at 49407, the highest id there is: the same place.
    assert config.text.eos_token_id == config.text.vocab - 1
    assert dataclasses.replace(config, text=dataclasses.replace(config.text, eos_token_id=2)) == models.clip_l14()


def test_config_json_of_one_tower():
    flat = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "patch_size": 14, "projection_dim": 768, "model_type": "clip_vision_model"}  # fmt: skip
    assert clip.VISION_WITH_PROJECTION.config_from_json(flat) == models.vision_l14()
    assert clip.VISION.config_from_json(flat) == dataclasses.replace(models.vision_l14(), projection=None)
    # transformers takes a tower's part out of the file of both.
    assert clip.VISION_WITH_PROJECTION.config_from_json(HUB) == models.vision_l14()
    assert clip.TEXT_WITH_PROJECTION.config_from_json(HUB) == models.text_l14()
    # Silence means transformers' defaults: ViT-B/32, and 512 wide text.
    theirs = transformers.CLIPTextConfig()
    ours = clip.TEXT_WITH_PROJECTION.config_from_json({})
    assert (ours.width, ours.projection, ours.eos_token_id) == (theirs.hidden_size, theirs.projection_dim, 49407)
    # A tower that does not project may leave the width open.
    assert clip.TEXT.config_from_json({"projection_dim": None}).projection is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text_config": {"hidden_act": "relu"}}, "text_config: hidden_act is 'relu', wanted one of gelu"),
        ({"vision_config": {"hidden_act": "relu"}}, "vision_config: hidden_act is 'relu', wanted one of gelu"),
        ({"text_config": {"attention_dropout": 0.1}}, "text_config: attention_dropout is 0.1, wanted 0"),
        ({"vision_config": {"num_channels": 1}}, "vision_config: num_channels is 1, wanted 3"),
        ({"vision_config": {"image_size": [224, 224]}}, r"image_size is \[224, 224\], wanted a positive whole number"),
        ({"vision_config": {"image_size": 225}}, "image_size is 225, wanted a multiple of the patch side 32"),
        ({"text_config": {"num_attention_heads": 7}}, "width is 512, wanted a multiple of the 7 heads"),
        ({"text_config": {"eos_token_id": [1, 2]}}, r"eos_token_id is \[1, 2\], wanted one whole number"),
        ({"text_config": {"vocab_size": "many"}}, "vocab_size is 'many', wanted a positive whole number"),
        ({"text_config": {"pruned_heads": {"1": [0]}}}, "pruned_heads is .*, wanted none"),
        ({"projection_dim": 0}, "config.json: projection_dim is 0, wanted a positive whole number"),
        ({"quantization_config": {"bits": 8}}, "quantization_config is .*, wanted none"),
    ],
)
def test_options_that_the_module_lacks_are_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        clip.config_from_json(change)


# key layouts


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPVisionModel", "CLIPTextModel"])
def test_files_of_older_transformers_hold_the_same(name, tmp_path):
    # They carry position counters, and their towers without projection keep the prefix.
    prefix = {"CLIPModel": "", "CLIPVisionModel": "vision_model.", "CLIPTextModel": "text_model."}[name]
    model = MODELS[name][0]()
    model.save_pretrained(tmp_path)
    new = open_checkpoint(tmp_path)
    tensors = {
        prefix + key: value for key, value in safetensors_torch.load_file(tmp_path / "model.safetensors").items()
    }
    for tower in ("vision_model.", "text_model.") if name == "CLIPModel" else (prefix,):
        tensors[f"{tower}embeddings.position_ids"] = torch.arange(9)[None]
    safetensors_torch.save_file(tensors, tmp_path / "old.safetensors")
    architecture = registry.find(name)
    config = architecture.config_from_json(model.config.to_dict())
    assert_same_tensors(architecture.canonical(open_checkpoint(tmp_path / "old.safetensors"), config), new)
    assert_same_tensors(architecture.canonical(new, config), new)


def test_a_tower_is_taken_from_a_checkpoint_of_both(tmp_path):
    model = small.clip_model("quick_gelu", "legacy_end")
    model.save_pretrained(tmp_path)
    whole, both = open_checkpoint(tmp_path), clip.config_from_json(model.config.to_dict())
    bare = dataclasses.replace(both.vision, projection=None)
    for architecture, config, part in (
        (clip.VISION_WITH_PROJECTION, both.vision, ("vision_model.", "visual_projection.")),
        (clip.TEXT_WITH_PROJECTION, both.text, ("text_model.", "text_projection.")),
        (clip.VISION, bare, ("vision_model.",)),
    ):
        tensors = architecture.canonical(whole, config)
        wanted = {key: tensor for key, tensor in whole.items() if key.startswith(part)}
        if config is bare:
            wanted = {key.removeprefix("vision_model."): tensor for key, tensor in wanted.items()}
        assert_same_tensors(tensors, wanted)
        # Nothing missing, nothing left over.
        check(architecture.table(config), tensors, architecture.abstract(config), "test")


def test_an_unknown_key_is_reported(tmp_path):
    model = small.vision_model("gelu")
    model.save_pretrained(tmp_path)
    tensors = safetensors_torch.load_file(tmp_path / "model.safetensors") | {"vision_model.extra": torch.ones(2)}
    del tensors["vision_model.post_layernorm.bias"]
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"missing: vision_model.post_layernorm.bias .*unexpected: vision_model.extra"
    ):
        load_pretrained(tmp_path)


class OpenAIBlock(torch.nn.Module):
    """A layer that names its parameters as OpenAI does; PyTorch's own attention fuses query, key and value."""

    def __init__(self, width):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        parts = [("c_fc", torch.nn.Linear(width, 4 * width)), ("c_proj", torch.nn.Linear(4 * width, width))]
        self.mlp = torch.nn.ModuleDict(collections.OrderedDict(parts))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class OpenAITower(torch.nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.resblocks = torch.nn.ModuleList(OpenAIBlock(width) for _ in range(depth))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class OpenAIVision(torch.nn.Module):
    def __init__(self, width, depth, side, patch, out):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.randn(width) / 8)
        self.positional_embedding = torch.nn.Parameter(torch.randn((side // patch) ** 2 + 1, width) / 8)
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.transformer = OpenAITower(width, depth)
        self.proj = torch.nn.Parameter(torch.randn(width, out) / 8)

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIClip(torch.nn.Module):
    """What `clip.load` and `longclip.load` return, as far as features go, written anew for this test."""

    def __init__(self, long):
        super().__init__()
        positions, width, out = (30 if long else 9), 64, 24
        self.visual = OpenAIVision(128, 3, 16, 8, out)
        self.transformer = OpenAITower(width, 2)
        self.token_embedding = torch.nn.Embedding(60, width)
        self.positional_embedding = torch.nn.Parameter(torch.randn(positions, width) / 8)
        if long:
            self.positional_embedding_res = torch.nn.Parameter(torch.randn(positions, width) / 8)
        self.ln_final = torch.nn.LayerNorm(width)
        self.text_projection = torch.nn.Parameter(torch.randn(width, out) / 8)
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.25))
        self.long = long

    def encode_text(self, tokens):
        positions = self.positional_embedding
        if self.long:
            first = (torch.arange(len(positions)) < 20)[:, None].float()
            positions = positions * first + self.positional_embedding_res * (1 - first)
        x = self.token_embedding(tokens) + positions[: tokens.shape[1]]
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


def openai_file(folder, long):
    torch.manual_seed(0)
    model = OpenAIClip(long).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    if not long:  # OpenAI's own files have these numbers beside the weights
        tensors |= {
            "input_resolution": torch.tensor(16),
            "context_length": torch.tensor(9),
            "vocab_size": torch.tensor(60),
        }
    path = folder / "openai.safetensors"
    safetensors_torch.save_file(tensors, path)
    return model, path


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True], ids=["clip", "longclip"])
def test_openai_layout_loads_and_becomes_transformers(long, tmp_path):
    model, path = openai_file(tmp_path, long)
    config, tensors = clip.open_openai_clip(path)
    text = models.CLIPTextConfig(
        width=64, hidden=256, depth=2, heads=1, vocab=60, positions=30 if long else 9, eos_token_id=2, projection=24
    )
    vision = models.CLIPVisionConfig(
        width=128, hidden=512, depth=3, heads=2, image_size=16, patch_size=8, projection=24
    )
    assert config == models.CLIPConfig(vision, text, 24)

    loaded = from_tensors(clip.MODEL, config, tensors, source=str(path))
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    tokens = small.texts("legacy_end", length=30 if long else 9)
    with torch.no_grad():
        image, words = model.visual(small.pixels(x)), model.encode_text(torch.as_tensor(tokens))
        unit = [torch.nn.functional.normalize(y, dim=-1) for y in (image, words)]
        wanted = model.logit_scale.exp() * unit[0] @ unit[1].T
    ours = Loaded(config, loaded.params, models.CLIP(config), clip.MODEL)
    similarities, vectors = ours(x, tokens)
    assert_close(similarities, wanted, "similarities")
    assert_close(vectors["image"], unit[0], "image vectors")
    assert_close(vectors["text"], unit[1], "text vectors")
    if long:  # one tower of the two, before its vectors are made units
        assert_close(ours(x, method="encode_image")[0], image, "image features")
        assert_close(ours(tokens, method="encode_text")[0], words, "text features")

    if not long:
        # The image tower alone, which is all that a reward needs.
        alone = clip.VISION_WITH_PROJECTION
        part = from_tensors(alone, vision, alone.canonical(open_checkpoint(path), vision), source=str(path)).params
        assert jax.tree.all(jax.tree.map(np.array_equal, part, loaded.params["vision"]))
        return
    # Written, it is a folder that transformers loads, with the same similarities.
    save_pretrained(loaded, tmp_path / "out")
    twin, info = transformers.CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        assert_close(twin.eval()(torch.as_tensor(tokens), small.pixels(x)).logits_per_image, wanted, "transformers")
    assert load_pretrained(tmp_path / "out").config == config


def test_longclip_converts_on_the_command_line_and_scores(tmp_path, capsys):
    # The way of the published LongCLIP: a file in OpenAI's layout -> a native folder -> a scorer.
    model, path = openai_file(tmp_path, long=True)
    assert cli.main(["convert", str(path), str(tmp_path / "native")]) == 0
    assert "CLIPModel" in capsys.readouterr().out
    scorer = Scorer.from_pretrained(tmp_path / "native")
    assert scorer.preprocessing.side == 16
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(model.visual(small.pixels(x)), dim=-1)
    assert_close(jax.jit(scorer.features)(scorer.model.params, x), wanted)


def test_openai_layout_that_does_not_fit_is_refused(tmp_path):
    _, path = openai_file(tmp_path, long=True)
    whole = safetensors_torch.load_file(path)

    def open_with(change, *, drop=()):
        tensors = {k: v for k, v in (whole | change).items() if k not in drop}
        safetensors_torch.save_file(tensors, tmp_path / "changed.safetensors")
        return clip.open_openai_clip(tmp_path / "changed.safetensors")

    for change, drop, message in (
        ({}, ("visual.conv1.weight",), r"changed.safetensors: visual.conv1.weight is missing, wanted .*ViT"),
        ({"visual.positional_embedding": torch.ones(4, 128)}, (), "has 4 rows, wanted one more than a square"),
        ({"visual.conv1.weight": torch.ones(96, 3, 8, 8)}, (), "visual.width is 96, wanted a multiple of 64"),
        ({"text_projection": torch.ones(64, 25)}, (), "text_projection is onto 25 axes, wanted 24"),
        ({"positional_embedding_res": torch.ones(29, 64)}, (), r"got float32\[30, 64\], wanted float32\[29, 64\]"),
    ):
        with pytest.raises(WeightsError, match=message):
            open_with(change, drop=drop)
    config, tensors = open_with({"transformer.resblocks.0.extra": torch.ones(1)}, drop=("ln_final.bias",))
    with pytest.raises(WeightsError) as caught:
        from_tensors(clip.MODEL, config, tensors, source="changed")
    assert "missing: text_model.final_layer_norm.bias" in str(caught.value)
    assert "unexpected: text_model.encoder.layers.0.extra" in str(caught.value)


def test_all_five_are_registered():
    for architecture in clip.ARCHITECTURES:
        assert registry.find(architecture.name) is architecture
    assert {a.name for a in clip.ARCHITECTURES} == set(MODELS)
