"""Compiles the full-size inference programs for TPUs that are not there, and prints what they would take.

    pip install libtpu==VERSION      # the one your jax pins; this script names it
    python launch/aot_check.py --topology v5p:2x2x1 --program both

One row per program: peak memory per chip, that of arguments alone (weights among them), and the compiler's collectives
by kind: how many stand in the program, of those how many in a loop (each runs once per round), and the largest result
of one. Numerics and speed are not checked. The exit code is 1 if a program takes more than 0.9 of a chip's memory.

Compiling takes one to ten minutes a program on two CPU cores; weights and data are never made.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uae_jax.data.prompts import Buckets, bucket
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.qwen2_5_vl.config import qwen2_5_vl_3b
from uae_jax.models.qwen2_5_vl.positions import ImagePatches
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.models.runtime import Runtime
from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.plan import compiling, topologies
from uae_jax.plan.collectives import collectives
from uae_jax.plan.compiling import GIB, SHARE
from uae_jax.sampling import flow, painting, text
from uae_jax.sampling.conditioning import Conditioning
from uae_jax.sampling.tokens import token_sampling
from uae_jax.weights import autoencoder_kl, qwen2_5_vl, sd3
from uae_jax.weights.architecture import Architecture

MAX_PIXELS = 65_536  # of an image that the encoder reads


def weights(architecture: Architecture, config: Any, mesh: Mesh) -> Any:
    """Parameters in bfloat16, in their shards, without memory."""
    params = architecture.abstract(config, Runtime(param_dtype=jnp.bfloat16))
    places = sharding.shardings(params, architecture.logical_axes.tree(params), mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params, places)


def array(mesh: Mesh, dtype: Any, *shape: int, rows: int | None = 0) -> jax.ShapeDtypeStruct:
    """An input that is split over the mesh along axis `rows`, or replicated."""
    names = ["batch" if axis == rows else None for axis in range(len(shape))]
    place = NamedSharding(mesh, sharding.partition_spec(shape, names, mesh))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def replicated(mesh: Mesh, tree: Any) -> Any:
    place = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def generate_program(mesh: Mesh, batch: int, runtime: Runtime, size: int, steps: int) -> tuple[Callable, tuple]:
    """SD3.5-Large under guidance and the VAE, from conditioning of 512 tokens to pixels."""
    config, vae_config = SD3Config.sd35_large(), AutoencoderKLConfig.sd3()
    decoder = sd3.ARCHITECTURE.module(config, runtime)
    vae = autoencoder_kl.ARCHITECTURE.module(vae_config, runtime)

    def run(params: Any, *rest: Any) -> jax.Array:
        return painting.to_uint8(painting.paint(decoder, {"params": params}, vae, *rest))

    told = Conditioning(
        array(mesh, jnp.bfloat16, batch, 512, config.context_dim), array(mesh, jnp.int32, batch, rows=None)
    )
    side = size // vae_config.downsampling
    return run, (
        weights(sd3.ARCHITECTURE, config, mesh),
        weights(autoencoder_kl.ARCHITECTURE, vae_config, mesh),
        replicated(mesh, jax.eval_shape(lambda: flow.make_schedule(steps))),
        array(mesh, jnp.float32, config.pooled_dim, rows=None),
        told,
        told,
        array(mesh, jnp.float32, rows=None),
        array(mesh, jnp.float32, batch, side, side, vae_config.latent_channels),
    )


def caption_program(mesh: Mesh, batch: int, runtime: Runtime, new_tokens: int) -> tuple[Callable, tuple]:
    """Qwen2.5-VL-3B on a square image and a question each: prefill and all new tokens."""
    config = qwen2_5_vl_3b()
    vision = config.vision
    model = qwen2_5_vl.ARCHITECTURE.module(config, runtime)
    unit = vision.patch_size * vision.merge_size
    patches = bucket((int(MAX_PIXELS**0.5) // unit * vision.merge_size) ** 2, Buckets().patches)
    length = 4 * Buckets().tokens
    windows = 2 * patches // vision.window_patches + 8  # as `PromptBuilder.pack` has them
    ints = functools.partial(array, mesh, jnp.int32)
    images = ImagePatches(
        patches=array(mesh, jnp.float32, batch, patches, vision.patch_width),
        position=ints(batch, patches, 2),
        segment=ints(batch, patches),
        window=ints(batch, windows, vision.window_patches),
        slot=ints(batch, patches),
    )
    prompts = Prompts(
        tokens=ints(batch, length),
        valid=array(mesh, jnp.bool_, batch, length),
        positions=ints(3, batch, length, rows=1),
        next_position=ints(batch),
        images=images,
        image_index=ints(batch, length),
    )

    def run(params: Any, prompts: Prompts, keys: jax.Array, sampling: Any) -> text.Generation:
        variables = {"params": params}
        fixed = {"stop_ids": (config.pad_token_id or 0,), "pad_id": 0, "max_new_tokens": new_tokens}
        return text.generate(model, variables, prompts, keys, sampling, **fixed)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    sampling = jax.eval_shape(lambda: token_sampling(0.7))
    params = weights(qwen2_5_vl.ARCHITECTURE, config, mesh)
    return run, (params, prompts, replicated(mesh, keys), replicated(mesh, sampling))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--topology", default="v5p:2x2x1", help="generation and chips, e.g. v5p:2x2x1, v6e:2x4")
    parser.add_argument("--program", default="both", choices=("caption", "generate", "both"))
    parser.add_argument("--fsdp", type=int, default=1, help="parts that weights are split into; 1 replicates them")
    parser.add_argument("--captions", type=int, default=64, help="captions in a batch, all chips together")
    parser.add_argument("--new-tokens", type=int, default=512, help="of each caption")
    parser.add_argument("--images", type=int, default=8, help="paintings in a batch, all chips together")
    parser.add_argument("--size", type=int, default=1024, help="pixels of a painting's side")
    parser.add_argument("--steps", type=int, default=40, help="of the sampler")
    parser.add_argument("--hlo", type=Path, help="folder for the optimised programs as text")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    topology = topologies.parse(options.topology)
    if why := compiling.missing(topology):
        sys.exit(f"{options.topology}: {why}")
    mesh = make_mesh(data=-1, fsdp=options.fsdp, devices=compiling.devices(topology))
    runtime = Runtime(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    makers = {
        "caption": lambda: caption_program(mesh, options.captions, runtime, options.new_tokens),
        "generate": lambda: generate_program(mesh, options.images, runtime, options.size, options.steps),
    }
    limit = SHARE * topology.chip.memory
    print(f"{options.topology}: {topology.count} chips, at most {limit / GIB:.1f} GiB each")
    print("program    peak GiB  arguments GiB  compile s  collectives")
    fits = True
    for name in ("caption", "generate") if options.program == "both" else (options.program,):
        run, inputs = makers[name]()
        compiled = compiling.compile_program(jax.jit(run), inputs, mesh)
        fits &= compiled.peak <= limit
        sums = "; ".join(map(str, collectives(compiled.hlo))) or "none"
        sizes = f"{compiled.peak / GIB:9.2f}  {compiled.arguments / GIB:13.2f}  {compiled.seconds:9.0f}"
        print(f"{name:10}{sizes}  {sums}{'' if compiled.peak <= limit else '  DOES NOT FIT'}", flush=True)
        if options.hlo is not None:
            options.hlo.mkdir(parents=True, exist_ok=True)
            (options.hlo / f"{name}.hlo.txt").write_text(compiled.hlo)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
