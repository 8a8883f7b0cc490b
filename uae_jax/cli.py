"""The `uae` command: argument parsing and exit codes; the work is done elsewhere.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import uae_jax

DTYPES = ("keep", "float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("uae: interrupted", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:  # bad input or bad files, told in one line; anything else is a bug
        reason = " ".join(str(error).split())
    except (MemoryError, RuntimeError) as error:  # on the host, or as JAX puts it
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        reason = "out of memory; a lower --memory-gb makes smaller batches, a lower --size smaller images"
    print(f"uae: error: {reason}", file=sys.stderr)
    return 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="uae",
        description="UAE in JAX: a vision-language model captions an image, a diffusion transformer paints it again.",
        epilog="`uae COMMAND --help` tells more of each command.",
    )
    parser.add_argument("--version", action="version", version=f"uae_jax {uae_jax.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_caption(commands)
    _add_generate(commands)
    _add_reconstruct(commands)
    _add_convert(commands)
    _add_export(commands)
    return parser


def _add_caption(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "caption",
        help="describe images",
        description="Writes a caption of each image: a line of path, tab and caption, or a JSON line.",
        epilog="example: uae caption photos/ --model ~/models/UAE --json > captions.jsonl",
    )
    _add_images(parser)
    _add_captioning(parser)
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line: image, caption")
    parser.set_defaults(run=_command("caption"))


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="paint prompts",
        description="Paints each prompt into DIR/00000.png, DIR/00001.png, ...",
        epilog='example: uae generate "a red cube on a blue sphere" --output out --model ~/models/UAE --size 512',
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("prompt", metavar="PROMPT", nargs="*", default=[], help="what to paint")
    source.add_argument("--prompts", metavar="FILE", help='a prompt a line, or JSON lines with "prompt"')
    _add_painting(parser)
    _add_model(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line: prompt, image")
    parser.set_defaults(run=_command("generate"))


def _add_reconstruct(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "reconstruct",
        help="caption images and paint the captions",
        description="Captions each image, paints the caption into DIR, and prints one JSON line: image, caption, "
        "painting, scores.",
        epilog="example: uae reconstruct photos/*.jpg --output out --model ~/models/UAE --scorer clip=~/models/clip-l",
    )
    _add_images(parser)
    _add_captioning(parser)
    _add_painting(parser)
    _add_model(parser)
    parser.add_argument(
        "--interface",
        choices=("text", "answer_hidden"),
        default="text",
        help="what the decoder is told: the caption, or the encoder's states while it wrote (default: text)",
    )
    parser.add_argument(
        "--scorer",
        action="append",
        default=[],
        type=_named_path,
        metavar="NAME=DIR",
        help="score likeness with this CLIP, DINOv2 or DINOv3 model; may be given more than once",
    )
    parser.set_defaults(run=_command("reconstruct"))


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="file, folder or quoted pattern")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=True, metavar="NAME|DIR", help="UAE checkpoint, published or native")
    group.add_argument(
        "--processor", metavar="NAME|DIR", help="base model, where the checkpoint has no tokenizer of its own"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES[1:]),
        default="auto",
        help="to compute in (default: float32 on CPU, bfloat16 elsewhere)",
    )
    group.add_argument("--memory-gb", type=float, default=8.0, help="for one batch, beside the weights (default: 8)")
    group.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")


def _add_captioning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("captioning")
    group.add_argument("--question", metavar="TEXT", help="what to ask (default: for a complete description)")
    group.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="cut captions here (default: 512)")
    group.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    group.add_argument("--top-k", type=int, default=0, metavar="N", help="draw from the N likeliest (default: 0, all)")
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 makes tokens seen before less likely (default: 1, off)",
    )
    group.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, off)")


def _add_painting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("painting")
    group.add_argument("--output", required=True, metavar="DIR", help="folder to write images into")
    group.add_argument("--force", action="store_true", help="overwrite images in it")
    group.add_argument("--steps", type=int, default=40, metavar="N", help="of the sampler (default: 40)")
    group.add_argument("--guidance", type=float, default=5.0, help="classifier-free; 1 is off (default: 5)")
    group.add_argument("--size", default="1024", metavar="PX", help="side, or HEIGHTxWIDTH (default: 1024)")
    group.add_argument("--negative", metavar="TEXT", help="what to move away from (default: the published model's)")
    group.add_argument(
        "--conditioning",
        choices=("current", "base"),
        default="current",
        help="read the prompt with the encoder's adapter or without (default: current)",
    )


def _named_path(text: str) -> tuple[str, str]:
    name, mark, path = text.partition("=")
    if not (name and mark and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, path


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="published checkpoint -> native",
        description=(
            "Reads a published checkpoint and writes our native format (Orbax), which restores straight into the "
            "shards of any mesh. SRC is a folder or Hugging Face name: one model as transformers or diffusers save it, "
            "or a UAE folder (llm_model, llm_lora, dit, dit_lora, SD3); or a LongCLIP .safetensors file in OpenAI's "
            "key layout. Only safetensors and JSON are read, never pickle. Every key is accounted for."
        ),
        epilog="example: uae convert ~/models/UAE ~/models/uae-native --dtype bfloat16",
    )
    parser.add_argument("src", metavar="SRC", help="published checkpoint: folder, file or Hugging Face name")
    parser.add_argument("dst", metavar="DST", help="native folder to write")
    parser.add_argument("--subfolder", default="", help="folder inside SRC that holds the model, e.g. transformer")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="type to store parameters in (default: keep)")
    parser.add_argument("--force", action="store_true", help="replace DST if it holds a checkpoint")
    parser.set_defaults(run=_convert)


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="native -> published layout",
        description=(
            "Writes a native checkpoint back in the published layout: safetensors that transformers, diffusers and "
            "PEFT load with no key missing and none unexpected."
        ),
        epilog="example: uae export ~/models/uae-native ~/models/UAE-finetuned",
    )
    parser.add_argument("src", metavar="SRC", help="native folder, as `uae convert` writes it")
    parser.add_argument("dst", metavar="DST", help="folder to write")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, help="size of one safetensors file (default: 5)")
    parser.add_argument("--force", action="store_true", help="replace DST if it holds a checkpoint")
    parser.set_defaults(run=_export)


# Commands import what they need when they run, so that `uae --help` answers at once.


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from uae_jax import commands

        return getattr(commands, name)(args)

    return run


def _convert(args: argparse.Namespace) -> int:
    from uae_jax.weights import convert

    summary = convert.convert(
        args.src,
        args.dst,
        subfolder=args.subfolder,
        dtype=None if args.dtype == "keep" else args.dtype,
        force=args.force,
    )
    print(summary)
    return 0


def _export(args: argparse.Namespace) -> int:
    from uae_jax.weights import convert

    print(convert.export(args.src, args.dst, max_shard_bytes=int(args.max_shard_gb * 1e9), force=args.force))
    return 0


if __name__ == "__main__":
    sys.exit(main())
