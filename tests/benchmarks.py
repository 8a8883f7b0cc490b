"""Races this package against transformers and diffusers on a CPU, on the same random weights and the same shapes.

    python -m tests.benchmarks [decode] [mmdit] [--rounds N] [--json]

The headline is the ratio: other programs on the machine slow both sides alike when their calls alternate, but move
absolute figures freely. Every cell first checks that both sides compute the same, and fails the command if not.
Compile time stands apart, and PyTorch gets the faster of one thread and one thread per core (on a busy machine its
barriers make many threads slower than one).

The models have about 50 M parameters. The text model comes in two shapes, since the outcome depends on it: "deep" is
Qwen2.5-VL-3B at an eighth of its width (its 36 layers, its MLP ratio), where a step is many small operations; "wide"
has the same size in 12 layers, where reading the weights takes longest. The MMDiT has as many heads as layers, as SD3.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tests.parity import TOLERANCE, Loaded, convert, randomise, relative_error
from uae_jax.models.qwen2_5_vl.positions import mrope_positions
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.sampling import flow, painting, text
from uae_jax.sampling.conditioning import Conditioning
from uae_jax.sampling.tokens import token_sampling

# Text model: depth, width, query and key/value heads (64 wide), MLP width. Embedding and head are one table.
TEXT_SHAPES = {"deep": (36, 256, 4, 1, 1376), "wide": (12, 512, 8, 2, 1408)}
VOCABULARY = 32_000
PROMPT, NEW = 64, 64
# MMDiT: 7 layers, width 7 x 64; an image of 256 x 256 pixels.
LAYERS, LATENT, CHANNELS, TEXT = 7, 32, 16, 77
CONTEXT, POOLED = 1024, 512
STEPS, GUIDANCE = 10, 5.0


@dataclasses.dataclass
class Cell:
    """One row of the table.

    Attributes:
      name: what is done.
      unit: what is counted.
      count: units of one call.
      ours, theirs: calls that return when the result is there.
      same: raises AssertionError if the results differ, else says how alike they are.
      compile_s: seconds of our compilation.
      limit: units per second that the hardware allows, and why.
    """

    name: str
    unit: str
    count: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    same: Callable[[Any, Any], str]
    compile_s: float
    limit: float


@dataclasses.dataclass
class Ceilings:
    """What this machine does at best, now: bytes read per second, float32 operations per second."""

    bandwidth: float
    flops: float


def ceilings() -> Ceilings:
    """Measures a copy of 256 MB and a vector times a matrix of 256 MB; and a product of 1536^3 by XLA and PyTorch."""
    a = np.random.default_rng(0).random(2**26, np.float32)
    b = np.empty_like(a)
    copied = 2 * a.nbytes / min(seconds(lambda: np.copyto(b, a)) for _ in range(5))
    wide = jnp.asarray(a.reshape(2**11, 2**15))
    read, _ = compiled(jnp.matmul, wide[:, 0], wide)
    bandwidth = max(copied, a.nbytes / min(seconds(read) for _ in range(5)))
    m = a[: 1536**2].reshape(1536, 1536)
    xla, _ = compiled(jnp.matmul, jnp.asarray(m), jnp.asarray(m))
    t = torch.tensor(m)
    product = min(seconds(run) for run in (xla, lambda: t @ t) for _ in range(5))
    return Ceilings(bandwidth, 2 * 1536**3 / product)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compiled(function: Callable, *args: Any) -> tuple[Callable[[], Any], float]:
    """Compiles for these arguments; returns a call that waits for its result, and the seconds it took."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    took = time.perf_counter() - start
    return lambda: jax.block_until_ready(program(*args)), took


def text_model(shape: str) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """A random text model (with a vision tower of next to nothing) that never ends an answer."""
    depth, width, heads, kv_heads, mlp = TEXT_SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": mlp,
            "vocab_size": VOCABULARY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        vision_start_token_id=2,
        vision_end_token_id=3,
        image_token_id=4,
        video_token_id=5,
        tie_word_embeddings=True,
    )
    model = randomise(transformers.Qwen2_5_VLForConditionalGeneration(config), seed=0)
    model.generation_config.eos_token_id = None
    return model


def decode_cells(limits: Ceilings, folder: Path) -> Iterator[Cell]:
    """Greedy decoding: prefill and NEW tokens for 1 and 8 rows."""
    for shape, sizes in TEXT_SHAPES.items():
        theirs = text_model(shape)
        ours = convert(theirs, folder / shape)
        size = sum(p.numel() for p in theirs.model.language_model.parameters())
        print(
            f"{shape} text model {sizes}: {size / 1e6:.1f} M parameters, {PROMPT} + {NEW} tokens",
            file=sys.stderr,
            flush=True,
        )
        for rows in (1, 8):
            tokens = np.random.default_rng(rows).integers(6, VOCABULARY, size=(rows, PROMPT)).astype(np.int32)
            # A step reads every weight once, and multiplies and adds it once per row.
            step = max(size * 4 / limits.bandwidth, 2 * size * rows / limits.flops)
            yield decode_cell(f"decode {shape} B={rows}", theirs, ours, tokens, rows / step)


def decode_cell(
    name: str, theirs: transformers.PreTrainedModel, ours: Loaded, tokens: np.ndarray, limit: float
) -> Cell:
    rows = len(tokens)
    valid = np.ones(tokens.shape, bool)
    positions, following = mrope_positions(tokens, [[]] * rows, valid, ours.config)
    prompts = Prompts(*(jnp.asarray(x) for x in (tokens, valid, positions, following)))
    keys = jax.random.split(jax.random.key(0), rows)

    def write(params: Any, prompts: Prompts, keys: jax.Array) -> jax.Array:
        return text.generate(
            ours.module,
            {"params": params},
            prompts,
            keys,
            token_sampling(0.0),
            stop_ids=(-1,),  # no such token
            pad_id=0,
            max_new_tokens=NEW,
        ).tokens

    run, compile_s = compiled(write, ours.params, prompts, keys)
    ids = torch.tensor(tokens, dtype=torch.long)

    @torch.inference_mode()
    def reference() -> torch.Tensor:
        return theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
        )[:, PROMPT:]

    def same(got: jax.Array, wanted: torch.Tensor) -> str:
        got, wanted = np.asarray(got), wanted.numpy()
        assert got.shape == wanted.shape == (rows, NEW), f"tokens {got.shape} and {wanted.shape}, wanted {(rows, NEW)}"
        assert np.array_equal(got, wanted), f"{(got != wanted).sum()} of {got.size} tokens differ"
        return f"tokens equal, {len(np.unique(got))} kinds"

    return Cell(name, "token", rows * NEW, run, reference, same, compile_s, limit)


def mmdit_model() -> diffusers.SD3Transformer2DModel:
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=64,
        num_attention_heads=LAYERS,
        joint_attention_dim=CONTEXT,
        caption_projection_dim=64 * LAYERS,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=LATENT,
        qk_norm="rms_norm",
    )
    return randomise(model, seed=0, std=0.02)


@dataclasses.dataclass
class PaintInputs:
    """Random inputs of B images: latents [B, C, H, W], context and negative [B, T, E], pooled [V]."""

    latents: np.ndarray
    context: np.ndarray
    negative: np.ndarray
    pooled: np.ndarray

    @classmethod
    def random(cls, rows: int) -> "PaintInputs":
        rng = np.random.default_rng(rows)
        shapes = ((rows, CHANNELS, LATENT, LATENT), (rows, TEXT, CONTEXT), (rows, TEXT, CONTEXT), (POOLED,))
        return cls(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))

    @property
    def pooled_rows(self) -> np.ndarray:
        return np.repeat(self.pooled[None], len(self.latents), axis=0)

    @property
    def channels_last(self) -> jax.Array:
        return jnp.asarray(self.latents.transpose(0, 2, 3, 1))


def mmdit_cells(limits: Ceilings, folder: Path) -> Iterator[Cell]:
    """One velocity for 1 and 4 images, and a whole guided rollout of one."""
    theirs = mmdit_model()
    ours = convert(theirs, folder)
    size = sum(p.numel() for p in theirs.parameters()) / 1e6
    print(f"MMDiT: {size:.1f} M parameters, latents {LATENT}x{LATENT}, {TEXT} text tokens", file=sys.stderr, flush=True)
    for rows in (1, 4):
        yield forward_cell(theirs, ours, PaintInputs.random(rows), limits)
    yield sampler_cell(theirs, ours, PaintInputs.random(1), limits)


def velocity_parity(got: jax.Array, wanted: torch.Tensor) -> str:
    error = relative_error(np.asarray(got).transpose(0, 3, 1, 2), wanted)
    assert error <= TOLERANCE, f"relative L2 error {error:.1e}, wanted at most {TOLERANCE:.0e}"
    return f"error {error:.0e}"


def forward_cell(theirs: torch.nn.Module, ours: Loaded, inputs: PaintInputs, limits: Ceilings) -> Cell:
    rows = len(inputs.latents)
    times = np.full(rows, 500.0, np.float32)

    def velocity(params: Any, *args: jax.Array) -> jax.Array:
        return ours.module.apply({"params": params}, *args)

    args = (times, inputs.context, inputs.pooled_rows)
    run, compile_s = compiled(velocity, ours.params, inputs.channels_last, *(jnp.asarray(x) for x in args))
    latents, (timestep, context, pooled) = torch.tensor(inputs.latents), (torch.tensor(x) for x in args)

    @torch.inference_mode()
    def reference() -> torch.Tensor:
        return theirs(latents, context, pooled, timestep, return_dict=False)[0]

    return Cell(
        f"velocity B={rows}", "step", 1, run, reference, velocity_parity, compile_s, limits.flops / flops(reference)
    )


def sampler_cell(theirs: torch.nn.Module, ours: Loaded, inputs: PaintInputs, limits: Ceilings) -> Cell:
    """STEPS guided steps: one program against the pipeline's loop, both from given noise to the final latents."""
    rows = len(inputs.latents)
    lengths = jnp.full(rows, TEXT)

    def rollout(params: Any, schedule: flow.Schedule, latents: jax.Array, context: jax.Array, negative: jax.Array):
        velocity = painting.guided_velocity(
            ours.module,
            {"params": params},
            schedule,
            jnp.asarray(inputs.pooled),
            Conditioning(context, lengths),
            Conditioning(negative, lengths),
            GUIDANCE,
        )
        return flow.sample(velocity, latents, schedule)[0]

    both = (jnp.asarray(x) for x in (inputs.context, inputs.negative))
    run, compile_s = compiled(rollout, ours.params, flow.make_schedule(STEPS), inputs.channels_last, *both)
    parts = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = diffusers.StableDiffusion3Pipeline(transformer=theirs, scheduler=scheduler, **dict.fromkeys(parts))
    pipeline.set_progress_bar_config(disable=True)
    context, negative, pooled = (torch.tensor(x) for x in (inputs.context, inputs.negative, inputs.pooled_rows))

    def reference() -> torch.Tensor:
        return pipeline(
            prompt_embeds=context,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=pooled,
            latents=torch.tensor(inputs.latents),
            height=8 * LATENT,
            width=8 * LATENT,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
        ).images

    limit = limits.flops / (flops(reference) / STEPS)
    return Cell(f"guided steps B={rows}", "step", STEPS, run, reference, velocity_parity, compile_s, limit)


def flops(run: Callable[[], Any]) -> int:
    """Operations of the matrix products and attentions of one call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def race(cell: Cell, rounds: int) -> dict[str, Any]:
    """Warms both sides up, compares their results, and times them in turns; rates are units per second."""
    parity = cell.same(cell.ours(), cell.theirs())

    def reference(threads: int) -> None:
        torch.set_num_threads(threads)
        cell.theirs()

    counts = sorted({1, os.cpu_count() or 1})
    sides = {0: cell.ours} | {count: functools.partial(reference, count) for count in counts}
    times = {side: [] for side in sides}
    for i in range(rounds):
        for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
            times[side].append(seconds(sides[side]))
        fastest = min(times[count][0] for count in counts)
        for slow in [count for count in counts if count in sides and times[count][0] > 2 * fastest]:
            del sides[slow]  # hopeless, and would take most of the time
    counts = [count for count in counts if count in sides]
    count = min(counts, key=lambda count: np.median(times[count]))
    ours, theirs = cell.count / np.array(times[0]), cell.count / np.array(times[count])
    return {
        "cell": cell.name,
        "unit": cell.unit,
        "ours": ours.tolist(),
        "theirs": theirs.tolist(),
        "ratio": float(np.median(ours) / np.median(theirs)),
        "limit": cell.limit,
        "compile_s": cell.compile_s,
        "torch_threads": count,
        "parity": parity,
    }


HEADINGS = (
    "cell",
    "ratio",
    "ours/s",
    "quartiles",
    "theirs/s",
    "quartiles",
    "limit/s",
    "compile s",
    "threads",
    "parity",
)


def table(records: list[dict[str, Any]]) -> str:
    """Aligns the figures: medians, and the quartiles between which half of the rounds lie."""

    def spread(rates: list[float]) -> tuple[str, str]:
        low, middle, high = np.percentile(rates, [25, 50, 75])
        return f"{middle:.3g}", f"{low:.3g}-{high:.3g}"

    rows = [HEADINGS]
    for r in records:
        figures = (f"{r['ratio']:.2f}x", *spread(r["ours"]), *spread(r["theirs"]), f"{r['limit']:.3g}")
        rows.append((r["cell"], *figures, f"{r['compile_s']:.1f}", str(r["torch_threads"]), r["parity"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    suites = {"decode": decode_cells, "mmdit": mmdit_cells}
    parser.add_argument("suites", nargs="*", metavar="suite", help="decode, mmdit; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side")
    parser.add_argument("--json", action="store_true", help="print every round's rate as JSON instead of the table")
    args = parser.parse_args()
    if unknown := set(args.suites) - set(suites):
        parser.error(f"unknown suite {', '.join(sorted(unknown))}, wanted {' or '.join(suites)}")
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, wanted at least 1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    limits = ceilings()
    machine = {
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "bandwidth_gb_s": round(limits.bandwidth / 1e9, 1),
        "gflop_s": round(limits.flops / 1e9, 1),
    }
    print("  ".join(f"{key} {value}" for key, value in machine.items()), file=sys.stderr, flush=True)
    records = []
    for name in args.suites or suites:
        with tempfile.TemporaryDirectory() as folder:
            for cell in suites[name](limits, Path(folder)):
                records.append(race(cell, args.rounds))
                print(f"  {cell.name}: {records[-1]['ratio']:.2f}x", file=sys.stderr, flush=True)
    print(json.dumps({"machine": machine, "records": records}) if args.json else table(records))


if __name__ == "__main__":
    main()
