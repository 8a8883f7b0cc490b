"""The `uae` command: argument parsing and exit codes; the work is done elsewhere.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage; of training also 143,
told to stop and saved, and 203, the run's other processes are gone (`uae_jax.errors`).
"""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

import uae_jax
from uae_jax import options
from uae_jax.bench.cli import add_bench
from uae_jax.errors import ABANDONED, FAILED, STOPPED, RunError

# What helps where memory runs out.
SERVING_ADVICE = {  # option that a command may have -> what it does
    "memory_gb": "a lower --memory-gb makes smaller batches",
    "batch_size": "a lower --batch-size makes smaller ones",
    "size": "a lower --size smaller images",
    "place": "--place split or host leaves them more room",
}
TRAINING_ADVICE = (
    "a higher `accumulate` makes smaller micro-batches, a lower `settings.paint.memory_gb` fewer paintings at a time, "
    '`remat="full"` of a tower keeps less of each; `uae plan` tells beforehand what fits'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    strange = [text for text in rest if not (hasattr(args, "overrides") and text.startswith("--config."))]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    args.overrides = rest
    if not 0 <= getattr(args, "seed", 0) < 2**32:  # of more, keys are made of the last 32 bits alone
        parser.error(f"argument --seed: is {args.seed}, wanted 0 to {2**32 - 1}")
    if args.run is None:
        parser.print_help(sys.stderr)
        return 2
    code = FAILED
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("uae: interrupted", file=sys.stderr)
        return code
    except (ValueError, OSError) as error:  # bad input or bad files, told in one line; anything else is a bug
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror is not None:
            named = "" if error.filename is None else f"{error.filename}: "
            full = "; make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            reason = f"{named}{error.strerror}{full}"
    except RunError as error:  # its lines may make a table
        reason, code = str(error), error.exit_code
    except (MemoryError, RuntimeError) as error:  # on the host, or as JAX puts it
        signs = ("RESOURCE_EXHAUSTED", "Out of memory")  # the latter alone where the host's runs out
        if not (isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)):
            raise
        told = [text for option, text in SERVING_ADVICE.items() if hasattr(args, option)]
        reason = "; ".join(["out of memory", args.memory_advice or ", ".join(told) or "this takes more than there is"])
    print(f"uae: error: {reason}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Takes no beginnings of options for them: --prompt for --prompts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, allow_abbrev=False)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="uae",
        description="UAE in JAX: a vision-language model captions an image, a diffusion transformer paints it again.",
        epilog="`uae COMMAND --help` tells more of each command.",
    )
    parser.add_argument("--version", action="version", version=f"uae_jax {uae_jax.__version__}")
    parser.set_defaults(run=None, memory_advice="")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_plan(commands)
    _add_report(commands)
    _add_caption(commands)
    _add_generate(commands)
    _add_reconstruct(commands)
    add_bench(commands)
    _add_convert(commands)
    _add_export(commands)
    _add_data(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="train the whole loop on the tiny model, in minutes",
        description="Runs all four stages on the tiny model that comes with the package: long-caption pre-training, "
        "cold start, generation for understanding, understanding for generation. Then measures the model before and "
        "after each on scenes it never saw, prints a table and writes WORKDIR/report.html. The same command goes on "
        "where it was stopped.",
        epilog="example: uae demo --workdir runs/demo --config.understanding.steps=200",
    )
    parser.add_argument(
        "--workdir", type=options.local, default="runs/demo", metavar="DIR", help="of all stages (default: runs/demo)"
    )
    parser.add_argument("--scenes", type=int, default=48, metavar="N", help="held-out scenes (default: 48)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    _add_overrides(parser)
    parser.set_defaults(run=_demo, memory_advice=TRAINING_ADVICE)


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="run the stage, or the stages, of a config",
        description="Trains. The same command goes on where the last run stopped, exactly; SIGTERM saves and stops. "
        f"Exit codes: 0 done, {FAILED} failed, 2 wrong usage; {STOPPED} told to stop, and saved; {ABANDONED} the "
        "run's other processes are gone, or did not come, and this one has no error of its own.",
        epilog="example: uae train --config configs/tiny/autoencoder.py --workdir runs/vae --config.steps=2000",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file with get_config(arg=None)")
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="checkpoints, metrics, pictures, the result; gs://... too"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    _add_overrides(parser)
    parser.set_defaults(run=_train("train"), memory_advice=TRAINING_ADVICE)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "plan",
        help="what a config would take on a TPU slice or on GPUs",
        description="Prints parameters, memory of a chip, the largest micro-batch that fits, work, ideal and expected "
        "time of a step, and collectives. Memory and collectives are those of the real TPU compiler where it is "
        "installed (the extra `plan`), else memory is of closed forms. Nothing is loaded: models that are not there "
        "yet are taken to be of the published sizes, or of --models. Exit code 1 where a stage does not fit.",
        epilog="example: uae plan --config configs/pretrain.py:size=full --topology v5p:2x2x2",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file with get_config(arg=None)")
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="as v4:2x2x1, v5e:4x4, v5p:4x4x4, v6e:2x4, h100:8, h200:16"
    )
    parser.add_argument(
        "--closed-form", action="store_true", help="take closed forms for all, in seconds: compiling takes minutes"
    )
    parser.add_argument("--models", choices=("full", "small", "tiny"), help="size of models that are not there")
    parser.add_argument("--json", metavar="FILE", help="write all figures into it")
    _add_overrides(parser)
    parser.set_defaults(run=_plan)


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="write a page about a training run",
        description="Writes one HTML file, which needs no network, about a run of one stage or of several, finished or "
        "under way: how far each stage came, curves, what evaluations drew, configurations. An earlier report is "
        "replaced.",
        epilog="example: uae report runs/tiny --output tiny.html",
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="the --workdir of `uae train`")
    parser.add_argument("--output", metavar="FILE", help="HTML file to write (default: WORKDIR/report.html)")
    parser.add_argument("--force", action="store_true", help="overwrite FILE even if it is no report")
    parser.set_defaults(run=_report)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("overrides", "--config.KEY=VALUE changes any setting, e.g. --config.seed=1")
    parser.set_defaults(overrides=[])


def _add_caption(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "caption",
        help="describe images",
        description="Writes a caption of each image: a line of path, tab and caption, or a JSON line.",
        epilog="example: uae caption photos/ --model ~/models/UAE --json > captions.jsonl",
    )
    options.add_images(parser)
    options.add_captioning(parser)
    options.add_model(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line: image, caption")
    parser.set_defaults(run=_command("caption"))


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="paint prompts",
        description="Paints each prompt into DIR/00000.png, DIR/00001.png, ...",
        epilog='example: uae generate "a red circle on a white background" --output out',
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("prompt", metavar="PROMPT", nargs="*", default=[], help="what to paint")
    source.add_argument("--prompts", metavar="FILE", help='a prompt a line, or JSON lines with "prompt"')
    options.add_painting(parser)
    options.add_model(parser)
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
    options.add_images(parser)
    options.add_captioning(parser)
    options.add_painting(parser)
    options.add_model(parser)
    options.add_loop(parser)
    parser.set_defaults(run=_command("reconstruct"))


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
    parser.add_argument(
        "--dtype", choices=options.DTYPES, default="keep", help="type to store parameters in (default: keep)"
    )
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


def _add_data(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("data", help="look at training data, or make some", description="Training data.")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_data_inspect(parts)
    _add_data_caption(parts)
    _add_data_encode(parts)


def _add_data_inspect(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what a source holds, and what is wrong with it",
        description="Reads a source as training would: counts, sizes, caption lengths, bad records by kind. SOURCE is "
        "a folder of images with .txt beside them; a .jsonl, .csv or .parquet table; WebDataset .tar shards or a "
        "pattern of them; an .array_record file; a folder of Hugging Face datasets; tfds:NAME/SPLIT; or scenes, the "
        "synthetic world.",
        epilog="example: uae data inspect photos/ --output report",
    )
    parser.add_argument("source", metavar="SOURCE", help="path, pattern, tfds:NAME/SPLIT, or scenes")
    parser.add_argument(
        "--kind",
        choices=("auto", "folder", "table", "webdataset", "arrayrecord", "tfds", "huggingface", "scenes"),
        default="auto",
        help="of source (default: auto, by looking)",
    )
    parser.add_argument(
        "--image", default="image", metavar="COLUMN", help="of a table or data set; '' for none (default: image)"
    )
    parser.add_argument(
        "--captions", nargs="+", default=[], metavar="FIELD", help="caption fields (default: all that are called so)"
    )
    parser.add_argument("--split", default="train", help="of a data set (default: train)")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N records, evenly spread (default: all)")
    parser.add_argument(
        "--output", type=options.local, metavar="DIR", help="write contact_sheet.html and inspection.json into it"
    )
    parser.add_argument("--cards", type=int, default=60, metavar="N", help="records on the sheet (default: 60)")
    parser.add_argument("--force", action="store_true", help="overwrite them")
    parser.add_argument("--model", metavar="NAME|DIR", help="count tokens, too, with this model's tokenizer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_data_command("inspect"))


def _add_data_caption(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "caption",
        help="write captions of a folder of images",
        description="Captions every image in DIR and below, and goes on where it stopped when run again. The result "
        "is a source to train on.",
        epilog="example: uae data caption photos/ --model ~/models/UAE",
    )
    parser.add_argument("folder", type=options.local, metavar="DIR", help="folder of images")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--output", type=options.local, metavar="FILE", help="JSON lines to write (default: DIR/captions.jsonl)"
    )
    target.add_argument("--txt", action="store_true", help="write a .txt beside each image instead")
    options.add_captioning(parser)
    options.add_model(parser)
    parser.set_defaults(run=_data_command("caption"))


def _add_data_encode(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "encode",
        help="compute latents and hidden states once",
        description="Sends the images of a `pretrain` config through its VAE and their captions through its encoder, "
        "which that stage leaves as they are, and writes one ArrayRecord file to train on instead. Goes on where it "
        "stopped when run again.",
        epilog="example: uae data encode --config configs/tiny/decoder.py:encode=one --output one.array_record",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="of one `pretrain` stage")
    parser.add_argument("--output", type=options.local, required=True, metavar="FILE", help="ArrayRecord file to write")
    parser.add_argument("--captions", type=int, default=1, metavar="N", help="drawn for each image (default: 1)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    _add_overrides(parser)
    parser.set_defaults(run=_train("encode"))


# Commands import what they need when they run, so that `uae --help` answers at once.


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from uae_jax import commands

        return getattr(commands, name)(args)

    return run


def _data_command(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from uae_jax import data_commands

        return getattr(data_commands, name)(args)

    return run


def _train(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from uae_jax.training import command

        return getattr(command, name)(args)

    return run


def _demo(args: argparse.Namespace) -> int:
    from uae_jax.demo.command import demo

    return demo(args)


def _plan(args: argparse.Namespace) -> int:
    from uae_jax.plan import command

    return command.run(args)


def _report(args: argparse.Namespace) -> int:
    from uae_jax.report import page

    print(page.write(args.workdir, args.output, force=args.force))
    return 0


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

    if not 0 < args.max_shard_gb < float("inf"):
        raise ValueError(f"--max-shard-gb is {args.max_shard_gb}, wanted a number above 0")
    print(convert.export(args.src, args.dst, max_shard_bytes=int(args.max_shard_gb * 1e9), force=args.force))
    return 0


if __name__ == "__main__":
    sys.exit(main())
