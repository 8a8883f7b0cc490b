"""The MMDiT equals `diffusers.SD3Transformer2DModel`: every layer, both streams, gradients and adapters."""

import dataclasses
import functools
import re
import statistics
import time

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tests.parity import assert_close, convert, randomise, relative_error, to_numpy
from tests.sizes import small_sd3
from uae_jax.models import lora, sd3
from uae_jax.models.runtime import Runtime
from uae_jax.models.sd3 import ATTENTION_TARGETS, SD3Config, SD3Transformer, position_table
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.sd3 import ARCHITECTURE

# Compiling takes longer than running here, so ask for the function and not for its speed.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# (options of diffusers, latent height and width, text tokens)
CASES = {
    # The SD3.5-Large kind: equal layers, then the last. Odd depth, three heads.
    "plain": (dict(num_layers=3, num_attention_heads=3, qk_norm="rms_norm"), (8, 8), 5),
    # The SD3-medium kind of 2024: no norm of queries and keys. Non-square, smaller than the table, odd margins.
    "no_qk_norm": (dict(num_layers=4, num_attention_heads=2, pos_embed_max_size=7), (4, 10), 3),
    # The SD3.5-Medium kind: dual layers first. Here the last layer is dual too.
    "dual": (dict(num_layers=4, num_attention_heads=2, qk_norm="rms_norm", dual_attention_layers=(0, 1, 3)), (6, 4), 9),
    # Three runs of one layer each.
    "interleaved": (dict(num_layers=4, num_attention_heads=2, dual_attention_layers=(0, 2)), (4, 4), 2),
    # Nothing to scan, a patch of one latent, other channels out than in.
    "single": (
        dict(num_layers=1, num_attention_heads=2, patch_size=1, out_channels=6, dual_attention_layers=(0,)),
        (3, 5),
        4,
    ),
}


def torch_model(options, seed=0, std=0.2):
    """A small `SD3Transformer2DModel` without any zero or one left from its initialisation.

    Its weights are wide and its text tokens faint, so that the form of GELU (tanh or erf, 5e-4 apart at most) and the
    epsilon of LayerNorm (1e-6) show in the output. Wide weights also magnify rounding: two of the 128 timestep
    frequencies are not rounded as torch's `exp` rounds them, and at timestep 1000 that is 2e-6 of the embedding.
    Gradients pass the layers twice, so their tests take narrower weights.
    """
    heads = options["num_attention_heads"]
    defaults = dict(
        sample_size=8, in_channels=4, out_channels=4, attention_head_dim=8, joint_attention_dim=20,
        caption_projection_dim=8 * heads, pooled_projection_dim=12, pos_embed_max_size=6,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = randomise(diffusers.SD3Transformer2DModel(**(defaults | options)), seed=seed, std=std)
    with torch.no_grad():
        for parameter in model.context_embedder.parameters():
            parameter *= 0.02
    return model


def inputs(size, tokens, batch=2, channels=4, seed=1):
    """NumPy inputs in our layout; every sample has a timestep of its own, none of them an integer."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((batch, *size, channels)).astype(np.float32)
    timestep = np.linspace(3.25, 996.4, batch).astype(np.float32)
    context = rng.standard_normal((batch, tokens, 20)).astype(np.float32)
    pooled = rng.standard_normal((batch, 12)).astype(np.float32)
    return latents, timestep, context, pooled


def run_torch(model, latents, timestep, context, pooled):
    """Runs the original on our inputs; tensors are used as they are, so that gradients reach them."""
    latents, timestep, context, pooled = (torch.as_tensor(x) for x in (latents, timestep, context, pooled))
    out = model(latents.permute(0, 3, 1, 2), context, pooled, timestep, return_dict=False)[0]
    return out.permute(0, 2, 3, 1)


def random_params(config):
    """Parameters without the zeros and ones of `init`."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), ARCHITECTURE.abstract(config)
    )


@functools.cache
def compiled(module):
    """One program per module, whatever parameters it is given."""
    return jit(module.apply, static_argnames="method")


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    """The "dual" case in both frameworks, with its inputs; nobody may change it."""
    options, size, tokens = CASES["dual"]
    model = torch_model(options, std=0.1)
    return model, convert(model, tmp_path_factory.mktemp("dual")), inputs(size, tokens)


@pytest.mark.parametrize("case", CASES)
def test_equals_diffusers_layer_by_layer(case, tmp_path):
    options, size, tokens = CASES[case]
    model = torch_model(options)
    ours = convert(model, tmp_path)
    args = inputs(size, tokens)

    seen = {}

    def keep(name):
        return lambda module, _, output: seen.__setitem__(name, output)

    model.pos_embed.register_forward_hook(keep("patches"))
    model.time_text_embed.register_forward_hook(keep("embedded"))
    for i, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(keep(i))
    with torch.no_grad():
        wanted = run_torch(model, *args)
    got, named = ours.with_intermediates(*args)

    assert got.shape == (2, *size, options.get("out_channels", 4))
    assert_close(named["patches"][0], seen["patches"], "patches with positions")
    assert_close(named["embedded"][0], seen["embedded"], "timestep and pooled embedding")
    compared = 0
    for run, (first, count, _) in enumerate(ours.config.runs):
        sown = named[f"layers_{run}"]
        for i in range(count):
            context, hidden = seen[first + i]
            assert_close(sown["hidden"][0][i], hidden, f"image stream after layer {first + i}")
            assert_close(sown["hidden_context"][0][i], context, f"text stream after layer {first + i}")
            compared += 1
    last_context, last_hidden = seen[ours.config.num_layers - 1]
    assert last_context is None and "hidden_context" not in named["last"]
    assert_close(named["last"]["hidden"][0], last_hidden, "image stream after the last layer")
    assert compared + 1 == options["num_layers"]
    assert_close(got, wanted, "velocity")


def test_table_of_the_file_counts_not_the_one_of_the_config(tmp_path):
    # The reference models were trained with positions that config.json does not determine.
    model = torch_model(CASES["no_qk_norm"][0])
    args = inputs(*CASES["no_qk_norm"][1:])
    with torch.no_grad():
        before = run_torch(model, *args)
        model.pos_embed.pos_embed.copy_(torch.randn(model.pos_embed.pos_embed.shape))
        wanted = run_torch(model, *args)
    assert relative_error(before, wanted) > 1e-2
    assert_close(convert(model, tmp_path)(*args), wanted)


@pytest.mark.parametrize(("width", "side", "sample"), [(32, 6, 8), (36, 7, 10), (2432, 5, 128)])
def test_fresh_table_is_that_of_diffusers_to_the_bit(width, side, sample):
    embed = diffusers.models.embeddings.PatchEmbed(
        height=sample, width=sample, patch_size=2, in_channels=4, embed_dim=width, pos_embed_max_size=side
    )
    config = dataclasses.replace(
        small_sd3(), num_heads=width // 4, head_dim=4, sample_size=sample, pos_embed_max_size=side
    )
    got = np.asarray(position_table(config)).reshape(1, side * side, width)
    np.testing.assert_array_equal(got, embed.pos_embed.numpy())


def test_even_positions_are_orthogonal():
    """At f = pi (k + 1/2) / K, k < K, the sum of cos(d f) is sin(pi d) / (2 sin(pi d / 2 K)): 0 at whole d > 0."""
    config = SD3Config.tiny()
    assert config.positions == "even"
    side, half = config.pos_embed_max_size, config.width // 2
    table = np.asarray(position_table(config), np.float64)
    for codes in (table[0, :, :half], table[:, 0, half:]):  # of columns, of rows
        np.testing.assert_allclose(codes @ codes.T, half / 2 * np.eye(side), atol=1e-5)


def test_latents_beyond_the_table_and_cut_patches_are_refused(dual):
    _, ours, _ = dual
    for size, message in (((14, 4), r"14x4, wanted at most 12 a side"), ((5, 4), r"5x4, wanted multiples.*2")):
        with pytest.raises(ValueError, match=message):
            ours(*inputs(size, 3))


@pytest.mark.slow
def test_modulation_is_computed_apart_from_denoising(dual):
    _, ours, (latents, timestep, context, pooled) = dual
    whole = compiled(ours.module)({"params": ours.params}, latents, timestep, context, pooled)
    conditioning = re.compile(r"(layers_adaln_\d+|last_adaln|out_adaln|timestep_embedder|pooled_embedder)")
    first = {name: leaf for name, leaf in ours.params.items() if conditioning.fullmatch(name)}
    second = {name: leaf for name, leaf in ours.params.items() if not conditioning.fullmatch(name)}

    # Each half gets only its own parameters, so neither can touch the other's.
    modulation = compiled(ours.module)({"params": first}, timestep, pooled, method="modulation")
    got = compiled(ours.module)({"params": second}, latents, context, modulation, method="denoise")

    # The programs are fused differently, so the last bits may differ.
    assert_close(got, whole, tolerance=1e-6)
    # Runs of layers 0-1 (dual) and 2; the last, 3, is dual; B = 2, D = 16.
    assert [run.image.shape for run in modulation.layers] == [(2, 2, 9, 16), (1, 2, 6, 16)]
    assert [run.context.shape for run in modulation.layers] == [(2, 2, 6, 16), (1, 2, 6, 16)]
    assert (modulation.last.image.shape, modulation.last.context.shape) == ((2, 9, 16), (2, 2, 16))
    assert modulation.out.shape == (2, 2, 16)


def test_one_modulation_serves_a_batch(dual):
    _, ours, (latents, timestep, context, pooled) = dual
    run, variables = compiled(ours.module), {"params": ours.params}
    wanted = run(variables, latents, timestep[[1, 1]], context, pooled[[0, 0]])
    one = run(variables, timestep[1:], pooled[:1], method="modulation")
    assert_close(run(variables, latents, context, one, method="denoise"), wanted, tolerance=1e-6)


def gradients(module, params, args):
    """Gradients of a weighted sum of the velocity, by parameters and by every input."""
    weight = np.random.default_rng(2).standard_normal((2, 6, 4, 4)).astype(np.float32)

    def loss(params, *xs):
        return jnp.sum(module.apply({"params": params}, *xs) * weight)

    by_params, *by_inputs = jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(params, *args)
    return traverse_util.flatten_dict(by_params, sep="/"), by_inputs, weight


@pytest.fixture(scope="module")
def dual_gradients(dual):
    _, ours, args = dual
    return gradients(ours.module, ours.params, args)


@pytest.mark.slow
def test_gradients_of_inputs_equal_those_of_torch(dual, dual_gradients):
    model, _, args = dual
    _, got, weight = dual_gradients
    tensors = [torch.tensor(x, requires_grad=True) for x in args]
    loss = (run_torch(model, *tensors) * torch.tensor(weight)).sum()
    wanted = torch.autograd.grad(loss, tensors)
    for name, one, other in zip(("latents", "timestep", "context", "pooled"), got, wanted, strict=True):
        assert_close(one, other, f"gradient of {name}")


def test_gradients_reach_every_parameter_that_matters(dual_gradients):
    # The last layer's text queries gather something that nobody reads; the position table is a buffer.
    dead = {"pos_embed/table", "last/attn/add_q/kernel", "last/attn/add_q/bias", "last/attn/norm_add_q/scale"}
    for path, grad in dual_gradients[0].items():
        # Of a stack, every layer.
        largest = np.abs(grad.reshape(grad.shape[0] if sharding.is_stacked(path) else 1, -1)).max(axis=1)
        assert (largest == 0).all() if path in dead else (largest > 0).all(), path


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient():
    config = dataclasses.replace(small_sd3(), num_layers=2, dual_attention_layers=())
    params = random_params(config)
    rng = np.random.default_rng(1)
    args = [rng.standard_normal(s.shape, np.float32) for s in sd3.example_inputs(config)]

    def gradients_of_params(remat):
        module = SD3Transformer(config, Runtime(remat=remat))
        grads = jit(jax.grad(lambda p, *xs: jnp.sum(module.apply({"params": p}, *xs) ** 2)))(params, *args)
        return traverse_util.flatten_dict(grads, sep="/")

    wanted = gradients_of_params("none")
    for remat in ("dots", "full"):
        for path, got in gradients_of_params(remat).items():
            if np.any(wanted[path]):
                assert_close(got, wanted[path], f"{remat}: {path}")  # the same sums, fused otherwise
            else:
                assert not np.any(got), path


def peft_leaves(ours, config, read):
    """Gathers adapters from a PEFT model, in the shape of our adapter tree.

    Args:
      ours: the converted base model.
      config: our targets.
      read: (published module, "A" or "B") -> torch tensor.
    """
    entries = {entry.path: entry for entry in ARCHITECTURE.table(ours.config)}
    flat = {}
    for path in lora.target_paths(ours.params, config):
        entry = entries[f"{path}/kernel"]
        modules = [key.removesuffix(".weight") for key in entry.keys]
        a = [to_numpy(read(module, "A")).T for module in modules]  # [D, R]
        b = [entry.layout.to_native(to_numpy(read(module, "B"))) for module in modules]  # [R, *features]
        flat[f"{path}/a"], flat[f"{path}/b"] = (np.stack(x) if entry.layers is not None else x[0] for x in (a, b))
    return traverse_util.unflatten_dict(flat, sep="/")


ATTENTION_NAMES = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "torch_targets", "our_targets"),
    [
        ("plain", [f"attn.{name}" for name in ATTENTION_NAMES], ATTENTION_TARGETS),
        # AdaLN layers have two output axes here, and no place in the layer's own module.
        ("single", ["norm1.linear", "norm1_context.linear", "attn2.to_q"], (r".*_adaln/(image|context)", r".*attn2/q")),
    ],
)
def test_adapters_equal_peft(case, torch_targets, our_targets, tmp_path):
    peft = pytest.importorskip("peft")
    options, size, tokens = CASES[case]
    args = inputs(size, tokens)
    model = torch_model(options, seed=3, std=0.1)
    ours = convert(model, tmp_path)  # before PEFT renames the base layers
    model.add_adapter(peft.LoraConfig(r=3, lora_alpha=6, target_modules=torch_targets))
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for number, parameter in enumerate(adapters.values()):  # B too, which PEFT leaves at zero
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))

    config = lora.LoRAConfig(rank=3, alpha=6, targets=our_targets)
    adapter = peft_leaves(ours, config, lambda module, part: adapters[f"{module}.lora_{part}.default.weight"])
    assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == sum(p.numel() for p in adapters.values())

    weight = np.random.default_rng(2).standard_normal((2, *size, ours.config.out_channels)).astype(np.float32)
    with_adapter = run_torch(model, *args)
    (with_adapter * torch.tensor(weight)).sum().backward()
    model.disable_adapters()
    with torch.no_grad():
        without = run_torch(model, *args)

    def loss(tree, params):
        out = ours.module.apply({"params": params, **lora.collection(tree, config)}, *args)
        return jnp.sum(out * weight), out

    grads, got = jit(jax.grad(loss, has_aux=True))(adapter, ours.params)
    assert relative_error(with_adapter, without) > 1e-2
    assert_close(got, with_adapter, "with the adapter")
    reference = compiled(ours.module)
    assert_close(reference({"params": ours.params}, *args), without, "without the adapter")
    assert_close(reference({"params": lora.merge(ours.params, adapter, config)}, *args), with_adapter, "merged")

    wanted = peft_leaves(ours, config, lambda module, part: adapters[f"{module}.lora_{part}.default.weight"].grad)
    flat_wanted = traverse_util.flatten_dict(wanted, sep="/")
    for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
        if path.startswith("last/attn/add_q/"):  # the last layer's text queries reach nothing
            assert not np.any(grad) and not np.any(flat_wanted[path])
        else:
            assert_close(grad, flat_wanted[path], f"gradient of {path}")


def test_bfloat16_runs_and_stays_near(dual):
    _, ours, args = dual
    module = SD3Transformer(ours.config, Runtime(dtype=jnp.bfloat16))
    got = compiled(module)({"params": ours.params}, *args)
    wanted = compiled(ours.module)({"params": ours.params}, *args)
    assert got.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 4e-3 per operation, four layers of a residual stream; a wrong branch gives tens of %.
    assert relative_error(got.astype(jnp.float32), wanted) < 3e-2


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    config = dataclasses.replace(small_sd3(), num_layers=2, num_heads=2, head_dim=16, context_dim=32, pooled_dim=32)
    params = random_params(config)
    rng = np.random.default_rng(1)
    shapes = ((4, 8, 4, 16), (4,), (4, 6, 32), (4, 32))
    args = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    args[1] = np.array([10.0, 250.5, 500.0, 999.0], np.float32)
    module = SD3Transformer(config)
    wanted = jit(module.apply)({"params": params}, *args)

    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = sharding.shardings(params, ARCHITECTURE.logical_axes.tree(params), mesh)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, placed)
        got = jit(module.apply)({"params": spread}, *args)
    # [1 layer, D 32, D 32]: fsdp halves the rows, tensor the columns.
    assert spread["layers_0"]["attn"]["q"]["kernel"].addressable_shards[0].data.shape == (1, 16, 16)
    assert_close(got, wanted, tolerance=1e-5)


def lowered(num_layers, dual_layers=()):
    """A training step's program (forward, backward, rematerialised) of a narrow model."""
    config = dataclasses.replace(small_sd3(), num_layers=num_layers, dual_attention_layers=dual_layers)
    module = SD3Transformer(config, Runtime(remat="full"))
    f32 = jnp.float32
    args = [jax.ShapeDtypeStruct(shape, f32) for shape in ((1, 8, 8, 16), (1,), (1, 8, 64), (1, 64))]
    loss = lambda params, *xs: jnp.sum(module.apply({"params": params}, *xs) ** 2)  # noqa: E731
    return jax.jit(jax.grad(loss)).lower(ARCHITECTURE.abstract(config), *args)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shallow", "deep"),
    [((4,), (38,)), ((4, (0, 1)), (24, tuple(range(13))))],
    ids=["large", "medium"],
)
def test_program_does_not_grow_with_depth(shallow, deep):
    # Unrolled, 38 layers would give some nine times the operations of 4.
    count = [lowered(*arguments).as_text().count(" = ") for arguments in (shallow, deep)]
    assert count[0] == count[1] > 100


@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth():
    def seconds(num_layers):
        program = lowered(num_layers)
        start = time.perf_counter()
        program.compile()
        return time.perf_counter() - start

    seconds(2)  # the first compilation also loads the compiler
    pairs = [(seconds(4), seconds(38)) for _ in range(3)]
    shallow, deep = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert deep < 1.5 * shallow, f"38 layers compile in {deep:.2f} s, 4 in {shallow:.2f} s"
