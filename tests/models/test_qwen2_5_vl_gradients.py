"""Gradients of Qwen2.5-VL against PyTorch: parameters, pixels, input embeddings, adapters."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import jax

from tests.models.qwen2_5_vl_cases import jit, original, prompts
from tests.parity import assert_close, convert
from uae_jax.models import lora
from uae_jax.models.lora import LoRAConfig
from uae_jax.models.qwen2_5_vl import Qwen2_5_VL
from uae_jax.models.runtime import Runtime
from uae_jax.weights import transfer

TARGETS = {
    **{f"attn/{name}": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
CONFIG = LoRAConfig(rank=3, alpha=12.0, targets=(r"language/layers/.*",))


@pytest.fixture(scope="module", params=["tied", "untied"])
def pair(request, tmp_path_factory):
    model = original(request.param, seed=7)
    return model, convert(model, tmp_path_factory.mktemp(request.param))


def torch_loss(logits: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    return (logits.log_softmax(-1) * torch.tensor(weights)).sum()


def jax_loss(logits: jax.Array, weights: np.ndarray) -> jax.Array:
    return (jax.nn.log_softmax(logits) * weights).sum()


def loss_weights(batch, vocab: int) -> np.ndarray:
    """Random weights of log-probabilities, zero at padding: a scalar that every output enters differently."""
    weights = np.random.default_rng(1).normal(size=(*batch.tokens.shape, vocab)).astype(np.float32)
    return weights * batch.valid[..., None]


@pytest.mark.slow
def test_every_parameter_and_pixel_has_the_gradient_of_the_original(pair):
    # Rows of unequal length, one of them without image: padding of patches, windows and tokens must add nothing.
    model, ours = pair
    batch = prompts(ours.config)
    weights = loss_weights(batch, ours.config.text.vocab)
    inputs = batch.for_torch()
    inputs["pixel_values"].requires_grad_()
    model.zero_grad()
    torch_loss(model(**inputs).logits, weights).backward()
    tokens, positions, segments, images, index = batch.for_jax(ours.config, pad_patches=60)

    @jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(params, patches):
        placed = images.replace(patches=patches)
        logits, _ = ours.module.apply({"params": params}, tokens, positions, segments, placed, index)
        return jax_loss(logits, weights)

    by_params, by_patches = gradient(ours.params, images.patches)
    read = transfer.to_published(ours.architecture.table(ours.config), by_params)
    compared = 0
    for key, parameter in model.named_parameters():
        published = key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        assert_close(read(published), parameter.grad, key)
        compared += 1
    assert compared == len([key for entry in ours.architecture.table(ours.config) for key in entry.keys])
    filled = images.segment > 0
    assert_close(np.asarray(by_patches)[filled], inputs["pixel_values"].grad, "pixels")
    assert not np.asarray(by_patches)[~filled].any()


def adapted(model, seed: int):
    """The original with adapters in every linear layer of its language model; b is not zero."""
    names = "|".join(name.replace(".", r"\.") for name in TARGETS.values())
    config = peft.LoraConfig(
        r=CONFIG.rank, lora_alpha=CONFIG.alpha, target_modules=rf".*language_model\.layers\.\d+\.({names})"
    )
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def adapter_tree(model, depth: int, read) -> dict:
    """Stacks `read(lora_A or lora_B weight)` over layers in our layout."""
    layers = model.base_model.model.model.language_model.layers
    tree = {}
    for ours, theirs in TARGETS.items():
        part, name = ours.split("/")
        modules = [layers[i].get_submodule(theirs) for i in range(depth)]
        a, b = ([read(getattr(m, f"lora_{x}")["default"].weight).numpy().T for m in modules] for x in "AB")
        tree.setdefault(part, {})[name] = {"a": np.stack(a), "b": np.stack(b)}
    return {"language": {"layers": tree}}


@pytest.mark.slow
def test_adapters_and_input_embeddings_have_the_gradients_of_the_original(tmp_path):
    # peft changes the model in place, so this one is not shared.
    model = original("tied", seed=9)
    ours = convert(model, tmp_path)
    batch = prompts(ours.config)
    weights = loss_weights(batch, ours.config.text.vocab)
    plain = model(**batch.for_torch()).logits.detach()
    model = adapted(model, seed=3)
    adapter = adapter_tree(model, ours.config.text.depth, lambda w: w.detach())
    assert sorted(lora.target_paths(ours.params, CONFIG)) == sorted(f"language/layers/{name}" for name in TARGETS)

    tokens, positions, segments, images, index = batch.for_jax(ours.config)

    def embed(module):
        return module.embed(tokens, module.encode_images(images), index)

    embeddings = ours(method=embed)
    leaf = torch.tensor(np.asarray(embeddings), requires_grad=True)
    wanted = model(
        inputs_embeds=leaf, attention_mask=torch.tensor(batch.valid).long(), position_ids=torch.tensor(positions).long()
    ).logits
    torch_loss(wanted, weights).backward()

    def run(module, embeddings):
        return module.logits(module.hidden_states(embeddings, positions, segments)[0])

    @jit
    def gradient(embeddings, adapter):
        def loss(embeddings, adapter):
            variables = {"params": ours.params, **lora.collection(adapter, CONFIG)}
            logits = ours.module.apply(variables, embeddings, method=run)
            return jax_loss(logits, weights), logits

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(embeddings, adapter)

    (by_embedding, by_adapter), logits = gradient(embeddings, adapter)
    assert_close(np.asarray(logits)[batch.valid], wanted[batch.valid], "logits with adapter")
    assert_close(by_embedding, leaf.grad, "input embeddings")
    wanted = adapter_tree(model, ours.config.text.depth, lambda w: w.grad)
    for path, grad in jax.tree_util.tree_leaves_with_path(by_adapter):
        there = wanted
        for step in path:
            there = there[step.key]
        assert_close(grad, there, jax.tree_util.keystr(path))

    without = ours(embeddings, method=run)
    with model.disable_adapter(), torch.no_grad():
        off = model(**batch.for_torch()).logits
    assert_close(off, plain, "the original with its adapter off")
    assert_close(np.asarray(without)[batch.valid], plain[batch.valid], "logits without adapter")
    assert np.abs(np.asarray(logits) - np.asarray(without)).max() > 0.1, "the adapter must change something"


@pytest.mark.slow
def test_rematerialisation_does_not_change_gradients(pair):
    _, ours = pair
    batch = prompts(ours.config)
    inputs = batch.for_jax(ours.config)
    weights = loss_weights(batch, ours.config.text.vocab)

    def gradient(remat: str):
        module = Qwen2_5_VL(ours.config, Runtime(remat=remat))
        return jit(jax.grad(lambda p: jax_loss(module.apply({"params": p}, *inputs)[0], weights)))(ours.params)

    wanted = gradient("none")
    for remat in ("dots", "full"):
        pairs = zip(jax.tree.leaves_with_path(gradient(remat)), jax.tree.leaves(wanted), strict=True)
        for (path, got), want in pairs:
            # The same operations in the same order; only fusions differ, hence the small room.
            assert_close(got, want, f"{remat} {jax.tree_util.keystr(path)}", tolerance=2e-6)
