"""The commands of `uae bench`: argument parsing, as in `uae_jax.cli`."""

import argparse
from collections.abc import Callable

from uae_jax import options

BENCHMARKS = (
    ("geneval", "GenEval", "its evaluation_metadata.jsonl"),
    ("genevalpp", "GenEval++", "its metadata, JSON lines"),
    ("dpg", "DPG-Bench", "its folder `prompts` of .txt files"),
)
SCENES = (*(name for name, *_ in BENCHMARKS), "vqa", "unified")


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Adds `bench` and its commands."""
    parser = commands.add_parser("bench", help="benchmark a model", description="Benchmarks.")
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_unified(parts)
    _add_compare(parts)
    _add_vqa(parts)
    _add_judge(parts)
    _add_scenes(parts)
    _add_ablate(parts)
    for name, title, prompts in BENCHMARKS:
        _add_prompts(parts, name, title, prompts)


def _add_unified(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "unified",
        help="Unified-Bench: how alike images and their reconstructions are",
        description="Captions and paints every image below --reference, or takes what somebody else painted "
        "(--generated; paired by path, name, stem, or a stem after recon_), and asks CLIP, LongCLIP, DINOv2 and DINOv3 "
        "how alike the two are. FILE.json has the structure that Unified-Bench publishes, FILE.html shows the pairs, "
        "the folder FILE/ holds captions and paintings; painting goes on where it stopped when run again. Exit code 1 "
        "where references are left without a readable painting.",
        epilog="example: uae bench unified --reference photos/ --model ~/models/UAE --output bench/mine.json",
    )
    parser.add_argument("--reference", required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--generated", metavar="DIR", help="folder of their reconstructions, made elsewhere")
    parser.add_argument("--output", type=options.local, required=True, metavar="FILE.json", help="record to write")
    parser.add_argument("--cards", type=int, default=200, metavar="N", help="worst pairs to show (default: 200)")
    options.add_loop(parser)
    options.add_captioning(parser)
    options.add_painting(parser, output=False)
    options.add_model(parser)
    parser.set_defaults(run=_command("run_unified"))


def _add_vqa(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "vqa",
        help="ask the encoder questions about images",
        description='Asks the questions of a file of JSON lines, {"image": PATH, "question": TEXT, "answer": ..., '
        '"choices": [...], "task": NAME}: multiple choice where there are choices, else free form. "answer" is the '
        "text of the right choice, its letter, or its number from 0; without choices, a text or a list of texts that "
        'are all right. "choices" and "task" may be left out. Prints accuracy by task, with 95% intervals, and keeps '
        "it in FILE.summary.json; `uae bench compare` takes two of these. Answers go to FILE.jsonl one by one; the "
        "same command goes on where it stopped, and asks anew what has changed since.",
        epilog="example: uae bench vqa --questions mmt/questions.jsonl --model ~/models/UAE --output bench/mmt.jsonl",
    )
    parser.add_argument("--questions", required=True, metavar="FILE.jsonl", help="what to ask")
    parser.add_argument("--output", type=options.local, required=True, metavar="FILE.jsonl", help="answers to write")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_answering(parser)
    options.add_model(parser)
    parser.set_defaults(run=_command("run_vqa"))


def _add_judge(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "judge",
        help="judge paintings of DPG-Bench or GenEval by asking an encoder",
        description="Asks the encoder of --model DPG-Bench's official questions about what `uae bench dpg` painted, or "
        "whether what `uae bench geneval` painted holds what it should. This is another judge than the official ones: "
        "its figures compare with each other, not with published ones. The same command goes on where it stopped, and "
        "asks anew about pictures that were painted anew. Exit code 1 where a prompt has no picture, or one cannot be "
        "read; these count as wrong.",
        epilog="example: uae bench judge dpg --questions dpg_bench.csv --images out/dpg --model ~/models/UAE "
        "--output out/dpg_answers.jsonl",
    )
    parser.add_argument("benchmark", choices=("dpg", "geneval"), help="which of them")
    parser.add_argument(
        "--questions", required=True, metavar="FILE", help="dpg_bench.csv, or GenEval's evaluation_metadata.jsonl"
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="what was painted")
    parser.add_argument("--output", type=options.local, required=True, metavar="FILE.jsonl", help="answers to write")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_answering(parser)
    options.add_model(parser)
    parser.set_defaults(run=_command("run_judge"))


def _add_prompts(commands: argparse._SubParsersAction, name: str, title: str, prompts: str) -> None:
    parser = commands.add_parser(
        name,
        help=f"paint the prompts of {title}",
        description=f"Paints every prompt of {title} into exactly the folder that its official scorer takes, checks "
        "the folder, and goes on where it stopped when run again. A painting depends on --seed and its number, not on "
        "what else is painted. Settings, with what the prompts and the model's files were, are kept in "
        "DIR.settings.json.",
        epilog=f"example: uae bench {name} --prompts PROMPTS --output out/{name} --model ~/models/UAE --size 512",
    )
    parser.add_argument("--prompts", required=True, metavar="PATH", help=prompts)
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="paint what the encoder makes of each prompt instead; kept in DIR.rewritten.jsonl",
    )
    options.add_painting(parser, force=False)
    options.add_model(parser)
    parser.set_defaults(run=_command("run_prompts"), benchmark=name)


def _add_scenes(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "scenes",
        help="all of these offline, on the scene world",
        description="Makes a twin of each benchmark from scenes that no recipe has seen, in the benchmark's own form, "
        "and runs it: prompts of every tag of GenEval and GenEval++, long captions with DPG-Bench's questions, "
        "questions about pictures, pictures to reconstruct. Paintings are judged by what the scene world's detector "
        "finds in them; nothing learned takes part, and no network. For models that know this world. The same command "
        "goes on where it stopped.",
        epilog="example: uae bench scenes --output bench/tiny",
    )
    parser.add_argument("--output", type=options.local, required=True, metavar="DIR", help="where everything goes")
    parser.add_argument(
        "--scenes", type=int, default=10, metavar="N", help="of each tag, number of objects, or topic (default: 10)"
    )
    parser.add_argument("--only", action="append", choices=SCENES, help="one of them; may be given more than once")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_loop(parser, scorers="those of the package, which know scenes")
    options.add_captioning(parser)
    options.add_painting(parser, output=False, force=False)
    options.add_model(parser)
    parser.set_defaults(run=_scenes)


def _add_ablate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "ablate",
        help="what the gain is owed to: one table of many runs on the tiny model",
        description="Trains every arm of the ablations in --configs on the scene world, once for each seed, measures "
        "each on held-out scenes and writes WORKDIR/ablations.md and .json: differences with their intervals over "
        "seeds and scenes. Arms that are trained alike share a run. Whatever is there already is not done again; of a "
        "run that was measured as asked, figures in WORKDIR/measured are enough, and its model may go. The "
        "table gets the ablations that are asked for, of --seeds and --scenes; others keep what they had. Two commands "
        "with different --seeds may run side by side; a last one with all of those seeds then trains nothing, and "
        "makes the table of all.",
        epilog="example: uae bench ablate --workdir runs/ablations --only reward --list",
    )
    parser.add_argument(
        "--workdir", type=options.local, required=True, metavar="DIR", help="runs, figures and the table"
    )
    parser.add_argument(
        "--configs", default="configs/ablations", metavar="DIR", help="ablations (default: configs/ablations)"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="one ablation; may be given more than once")
    parser.add_argument("--list", action="store_true", help="say which runs it takes, and about how long, and stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, metavar="N", help="of each stage (default: what the files say, 120)")
    parser.add_argument(
        "--stage",
        choices=("understanding", "generation"),
        help="train this one of the reinforcement stages alone, where a question can be put to one: name such with "
        "--only, as order and rounds compare several (default: both, one after the other)",
    )
    parser.add_argument("--scenes", type=int, default=512, metavar="N", help="held-out scenes (default: 512)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars of training")
    parser.set_defaults(run=_ablate)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compare",
        help="whether one record of Unified-Bench, or summary of vqa, is better than another",
        description="Compares two records pair by pair, on the pairs and scorers that both have: means, differences, "
        "and their 95% intervals by bootstrap. Says which pairs and scorers only one of them has, and whether the "
        "overall score is of all four scorers. Two summaries of `uae bench vqa` are compared question by question.",
        epilog="example: uae bench compare before.json after.json",
    )
    parser.add_argument("first", metavar="FIRST.json", help="ours, or one that the published code wrote")
    parser.add_argument("second", metavar="SECOND.json", help="over the same references")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_command("run_compare"))


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from uae_jax.bench import commands

        return getattr(commands, name)(args)

    return run


def _scenes(args: argparse.Namespace) -> int:
    from uae_jax.bench.scenes import command

    return command.run(args)


def _ablate(args: argparse.Namespace) -> int:
    from uae_jax.bench.ablations import command

    return command.ablate(args)
