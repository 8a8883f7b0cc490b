"""Options that several commands share. Imports nothing that takes time, like `uae_jax.cli`."""

import argparse
import contextlib

DTYPES = ("keep", "float32", "bfloat16", "float16")


def local(text: str) -> str:
    """A path on this machine; for commands that have nothing to do in buckets."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is in a bucket, wanted a place on this machine; copy it with `gcloud storage cp`"
        )
    return text


def add_loop(parser: argparse.ArgumentParser, scorers: str = "those that come with the model") -> None:
    """Those of going through the loop: the interface, and scorers, with a word on which are taken if none is named."""
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
        help="score likeness with this CLIP, DINOv2 or DINOv3 model; may be given more than once; "
        f"clip=tiny/scorers/clip is one of the package (default: {scorers})",
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """Which images."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="file, folder or quoted pattern")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it computes."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="tiny",
        metavar="NAME|DIR",
        help="UAE checkpoint, published or native (default: tiny, which comes with the package)",
    )
    group.add_argument(
        "--processor", metavar="NAME|DIR", help="base model, where the checkpoint has no tokenizer of its own"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES[1:]),
        default="auto",
        help="to compute in (default: float32 on CPU, bfloat16 elsewhere)",
    )
    group.add_argument(
        "--place",
        choices=("device", "split", "host"),
        default="device",
        help="where the weights lie: on one device; split over all of them, and batches, too; in the host's memory, a "
        "part on the device only while it computes, which is slower (default: device)",
    )
    group.add_argument(
        "--memory-gb", type=_positive, default=8.0, help="for one batch, beside the weights (default: 8)"
    )
    group.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")


def add_captioning(parser: argparse.ArgumentParser) -> None:
    """How captions are written."""
    group = parser.add_argument_group("captioning")
    group.add_argument("--question", metavar="TEXT", help="what to ask (default: for a description)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="cut captions here (default: 512; tiny: 192)")
    group.add_argument("--temperature", type=float, help="0 takes the likeliest token (default: 0.7; tiny: 0)")
    _add_drawing(group)


def add_answering(parser: argparse.ArgumentParser) -> None:
    """How answers to questions of a benchmark are written: short, and the same every time, whatever captions are."""
    group = parser.add_argument_group("answering")
    group.add_argument(
        "--max-new-tokens", type=int, default=16, metavar="N", help="cut answers here (default: 16, a short phrase)"
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token; above, draws (default: 0)"
    )
    _add_drawing(group)
    parser.set_defaults(question=None)


def _add_drawing(group: argparse._ArgumentGroup) -> None:
    """How tokens are drawn."""
    group.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest (default: 0, all)")
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1 makes tokens seen before less likely (default: 1, off)",
    )
    group.add_argument("--top-p", type=float, help="nucleus sampling (default: 1, off)")


def add_painting(parser: argparse.ArgumentParser, output: bool = True, force: bool = True) -> None:
    """How pictures are painted, and where to."""
    group = parser.add_argument_group("painting")
    if output:
        group.add_argument("--output", type=local, required=True, metavar="DIR", help="folder to write images into")
    if force:
        group.add_argument("--force", action="store_true", help="overwrite what is there")
    group.add_argument("--steps", type=int, metavar="N", help="of the sampler (default: 40; tiny: 20)")
    group.add_argument("--guidance", type=float, help="classifier-free; 1 is off (default: 5; tiny: 3)")
    group.add_argument("--size", metavar="PX", help="side, or HEIGHTxWIDTH (default: the decoder's, 1024 at most)")
    group.add_argument("--negative", metavar="TEXT", help="what to move away from (default: the model's)")
    group.add_argument(
        "--conditioning",
        choices=("current", "base"),
        help="read the prompt with the encoder's adapter or without (default: current)",
    )


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"is {text}, wanted a number above 0")


def _named_path(text: str) -> tuple[str, str]:
    name, mark, path = text.partition("=")
    if not (name and mark and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, path
