"""What the three sizes of the system are: models, pictures, judges, mesh. Every file beside this one takes `size=`.

size    models                                       pictures           hardware
tiny    those that come with the package             scenes, 64 px      two CPU cores
small   0.5 B parameters, from nothing               yours, 256 px      one accelerator of 40 GB
full    Qwen2.5-VL-3B and SD3.5-Large, published     yours, 512 px      a slice of 8 accelerators of 80 GB and more
"""

from types import ModuleType, SimpleNamespace

from ml_collections import ConfigDict

from uae_jax.data.config import MISSING
from uae_jax.training.configure import parse_arg

LONG = ("long", "exhaustive")
LEVELS, WEIGHTS = ("short", "medium", "long", "exhaustive"), (0.1, 0.3, 0.3, 0.3)
TRAIN_SEED, HELD_OUT_SEED = 20, 1  # of scenes; the embedded models were trained on others
ROUND = 1000  # between the seeds of a stage and of the same one in the next round
# Name, weight, published scorer. CLIP is rewarded, as in the paper; the others show whether it is being gamed.
PUBLISHED = (
    ("clip", 1.0, "openai/clip-vit-large-patch14"),
    ("longclip", 0.0, "models/longclip-l"),
    ("dinov2", 0.0, "facebook/dinov2-large"),
    ("dinov3", 0.0, "facebook/dinov3-vitl16-pretrain-lvd1689m"),
)
ARGUMENTS = {"size": "tiny", "data": "", "held_out": "", "model": "", "seed": 0}


def read(arg: str | None, model: dict[str, str], **more) -> SimpleNamespace:
    """Reads the argument of a config.

    Args:
      arg: of `get_config`: "size=small,data=DIR,held_out=DIR,model=DIR,seed=1", all of it optional but `data` of the
        sizes that bring none. `held_out` are pictures that nothing is learnt from: evaluations measure and draw them.
        Without it there are none, unless the data is scenes.
      model: what each size starts from.
      **more: further options and their defaults.

    Raises:
      ValueError: on an unknown size, or `held_out` beside scenes.
    """
    options = parse_arg(arg, **ARGUMENTS, **more)
    if options.size not in model:
        raise ValueError(f"size is {options.size!r}, wanted one of {', '.join(model)}")
    if options.held_out and not options.data:
        raise ValueError(f"held_out is {options.held_out!r}, but data is not given; give both")
    options.model = options.model or model[options.size]
    options.side = {"tiny": 64, "small": 256, "full": 512}[options.size]
    return options


def data(options: SimpleNamespace, *, captions: bool, levels=LEVELS, weights=WEIGHTS) -> dict[str, ConfigDict]:
    """Fields "data" and, where there is any, "validation" of an experiment; data that is not given is `MISSING`."""
    if options.size == "tiny" and not options.data:
        own = _scenes(levels, weights, TRAIN_SEED + options.seed, captions, 200_000)
        return {"data": own, "validation": _scenes(levels, weights, HELD_OUT_SEED, captions, 512, shuffle=False)}
    found = {"data": _pictures(options.data or MISSING, options.side, captions)}
    if options.held_out:
        found["validation"] = _pictures(options.held_out, options.side, captions)
        found["validation"].shuffle = False
    return found


def loop(options: SimpleNamespace, **changes) -> ConfigDict:
    """Settings that all stages of the loop have, at this size."""
    tiny = options.size == "tiny"
    settings = ConfigDict({"model": options.model, "dtype": "float32" if tiny else "bfloat16"})
    if tiny:
        settings.text = {"max_tokens": 160, "max_pixels": 4096}
    else:
        settings.text = {"max_tokens": 512, "max_pixels": options.side**2}
        settings.logit_chunk = 256
        settings.reward = tuple({"name": name, "weight": w, "model": where} for name, w, where in PUBLISHED)
    settings.scene_scores = tiny and not options.data
    settings.update(ConfigDict(changes))
    return settings


def run(options: SimpleNamespace, stage: str, settings: ConfigDict, data: dict[str, ConfigDict], **more) -> ConfigDict:
    """The whole experiment; `more` are its further fields."""
    config = ConfigDict({"stage": stage, "settings": settings, "seed": options.seed, **data, **more})
    if "validation" not in data:
        config.evaluate_every = 0
    if options.size == "full":
        config.mesh = {"data": -1, "fsdp": 8}  # over more, widths of 2432 make parts that compilers handle badly
    return config


def chain(options: SimpleNamespace, stages: list[tuple[str, ModuleType]], steps: int) -> ConfigDict:
    """Stages one after the other, each from the last one's result, of so many steps each.

    A stage that comes again sees other pictures in another order, and draws other noise, than the time before.

    Args:
      options: of `read`; the first stage starts from its model.
      stages: name, and the file beside this one that has its `experiment`.
      steps: see above.
    """
    config = ConfigDict({"stages": tuple(name for name, _ in stages)})
    for number, (name, module) in enumerate(stages):
        before = sum(module is other for _, other in stages[:number])
        own = SimpleNamespace(**{**vars(options), "seed": options.seed + ROUND * before})
        own.model = "previous" if number else options.model
        config[name] = module.experiment(own, steps)
    return config


def _scenes(levels: tuple, weights: tuple, seed: int, captions: bool, count: int, **more) -> ConfigDict:
    scenes = {"count": count, "seed": seed, "size": 64, "levels": levels if captions else ()}
    source = {"kind": "scenes", "scenes": scenes}
    source |= {"captions": levels, "caption_weights": weights} if captions else {}
    return ConfigDict({"sources": [source], "resolution": 64, "with_captions": captions, **more})


def _pictures(path: str, side: int, captions: bool) -> ConfigDict:
    return ConfigDict({"sources": [{"path": path}], "resolution": side, "with_captions": captions, "workers": 4})
