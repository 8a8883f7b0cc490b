"""From a file and overrides to experiments: everything can be set, nothing misspelt gets through."""

import dataclasses
import json
import re
import sys
from typing import Literal

import numpy as np
import pytest

from uae_jax import plain
from uae_jax.data.config import DataConfig, ScenesConfig, SourceConfig
from uae_jax.stages import registry
from uae_jax.training import configure, overriding
from uae_jax.training.config import Experiment, MeshConfig, OptimiserConfig
from uae_jax.training.configure import ConfigError, load_config, parse_arg


@dataclasses.dataclass(frozen=True)
class Tower:
    mode: Literal["frozen", "lora"] = "frozen"
    rank: int = 32


@dataclasses.dataclass(frozen=True)
class Settings:
    model: str = "new:tiny"
    temperature: float = 0.07
    sizes: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()
    limit: int | None = None
    distill: bool = False
    tower: Tower = Tower(rank=8)


class Stage:
    """No more of a stage than a config needs."""

    Settings = Settings

    def __init__(self, settings, seed=0):
        if settings.temperature <= 0:
            raise ValueError(f"temperature is {settings.temperature}, wanted more than 0")


class Other:
    Settings = Tower

    def __init__(self, settings, seed=0):
        pass


@pytest.fixture(autouse=True)
def stages(monkeypatch):
    there = {"toy": Stage, "other": Other}

    def find(name):
        if name not in there:
            raise ValueError(f"stage is {name!r}, the nearest there is {plain.nearest(name, there)!r}")
        return there[name]

    monkeypatch.setattr(registry, "find", find)
    monkeypatch.setattr(registry, "names", lambda: list(there))


HEAD = "from ml_collections import ConfigDict\n"
ONE = """
def get_config(arg=None):
    c = ConfigDict()
    c.stage = "toy"
    c.steps = 5
    c.settings = ConfigDict(dict(temperature=1))
    c.data = dict(sources=(ConfigDict(dict(kind="scenes", scenes=dict(count=9))), dict(path="a", captions=("x",))))
    c.optimiser = ConfigDict(dict(learning_rate=1e-4))
    return c
"""
SEVERAL = """
def get_config(arg=None):
    data = dict(sources=(dict(kind="scenes"),))
    return ConfigDict(dict(
        stages=("first", "second"),
        first=dict(stage="toy", data=data, settings=dict(limit=3)),
        second=dict(stage="other", data=data, steps=7),
    ))
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.py"):
        (tmp_path / name).write_text(HEAD + text)
        return str(tmp_path / name)

    return write


def load(file, *overrides):
    [(name, experiment)] = load_config(file, overrides)
    assert name == experiment.stage
    return experiment


def test_a_file_says_what_differs_from_the_defaults(write):
    assert load(write(ONE)) == Experiment(
        stage="toy",
        settings=Settings(temperature=1.0),
        data=DataConfig(
            (SourceConfig(kind="scenes", scenes=ScenesConfig(count=9)), SourceConfig("a", captions=("x",)))
        ),
        optimiser=OptimiserConfig(learning_rate=1e-4),
        steps=5,
    )


def test_several_stages_run_in_their_order(write):
    file = write(SEVERAL)
    (first, one), (second, two) = load_config(file, ["--config.second.steps=8", "--config.first.settings.sizes=4"])
    assert (first, second) == ("first", "second")
    assert one.settings == Settings(limit=3, sizes=(4,)) and two.settings == Tower()
    assert (one.steps, two.steps) == (1000, 8)
    assert [name for name, _ in load_config(file, ["--config.stages=second"])] == ["second"]
    assert [name for name, _ in load_config(file, ["--config.stages=second,first"])] == ["second", "first"]


OVERRIDES = [
    ("steps=7", "steps", 7),
    ("steps=7_000", "steps", 7000),
    ("optimiser.learning_rate=3e-4", "optimiser.learning_rate", 3e-4),
    ("optimiser.clip=2", "optimiser.clip", 2.0),
    ("optimiser.schedule=linear", "optimiser.schedule", "linear"),
    ("ema.decay=0.9", "ema.decay", 0.9),
    ("data.shuffle=False", "data.shuffle", False),
    ("data.shuffle=false", "data.shuffle", False),
    ("data.aspects=(1.0, 1.5)", "data.aspects", (1.0, 1.5)),
    ("data.aspects=1,1.5", "data.aspects", (1.0, 1.5)),
    ("data.aspects=[2]", "data.aspects", (2.0,)),
    ("data.aspects=2", "data.aspects", (2.0,)),
    ("data.limits.min_side=8", "data.limits.min_side", 8),
    ("settings.names=a,b", "settings.names", ("a", "b")),
    ("settings.names=('a', 'b')", "settings.names", ("a", "b")),
    ("settings.names=1,2", "settings.names", ("1", "2")),
    ("settings.names=", "settings.names", ()),
    ("settings.model=17", "settings.model", "17"),
    ("settings.model=a=b", "settings.model", "a=b"),
    ("settings.limit=4", "settings.limit", 4),
    ("settings.limit=none", "settings.limit", None),
    ("settings.distill=true", "settings.distill", True),
    ("settings.sizes[1]=5", "settings.sizes", (1, 5)),  # the file does not mention it: the default is (1, 2)
    ("settings.sizes.0=5", "settings.sizes", (5, 2)),
    ("settings.tower.mode=lora", "settings.tower", Tower("lora", 8)),  # rank 8 as `Settings` has it, not 32
    ("mesh.fsdp=2", "mesh", MeshConfig(fsdp=2)),
    ("validation.sources=[{'path': 'held_out'}]", "validation", DataConfig((SourceConfig("held_out"),))),
]


@pytest.mark.parametrize(("override", "path", "value"), OVERRIDES)
def test_any_field_can_be_set(write, override, path, value):
    got = load(write(ONE), "--config." + override)
    for part in path.split("."):
        got = getattr(got, part)
    assert got == value and type(got) is type(value)


def test_items_of_lists_can_be_set(write):
    file = write(ONE)
    experiment = load(file, "--config.data.sources[1].weight=3", "--config.data.sources.0.scenes.seed=5")
    assert experiment.data.sources[1] == SourceConfig("a", captions=("x",), weight=3.0)
    assert experiment.data.sources[0].scenes == ScenesConfig(count=9, seed=5)


def test_a_path_in_the_place_of_scenes_wants_another_kind_too(write):
    given = ("--config.data.sources[0].path=photos", "--config.data.sources[0].kind=auto")
    assert load(write(ONE), *given).data.sources[0].path == "photos"
    assert load(write(ONE), "--config.data.sources[0].path=scenes").data.sources[0].kind == "scenes"


def test_a_part_that_is_none_in_the_file_can_be_filled(write):
    overrides = ["--config.validation.resolution=32", "--config.validation.sources=[{'kind': 'scenes'}]"]
    assert load(write(ONE), *overrides).validation.resolution == 32


def test_settings_are_those_of_the_stage_that_an_override_chooses(write):
    text = ONE.replace("c.settings", "c.unused = None; del c.unused; _")
    assert load(write(text), "--config.settings.rank=4", "--config.stage=other").settings == Tower(rank=4)


REFUSED = [
    ("sttings.model=x", "config.sttings: unknown; the nearest field of Experiment is 'settings'"),
    ("settings.modle=x", "config.settings.modle: unknown; the nearest field of Settings is 'model'"),
    ("settings.tower.rnak=1", "config.settings.tower.rnak: unknown; the nearest field of Tower is 'rank'"),
    ("learning_rate=1", "unknown; the nearest field of Experiment is 'optimiser.learning_rate'"),
    ("data.sources[0].scenes.cuont=1", "unknown; the nearest field of ScenesConfig is 'count'"),
    ("data.sources[2].weight=1", "config.data.sources[2]: not there, wanted the number of one of 2 items, from 0"),
    ("data.sources.weight=1", "config.data.sources[weight]: not there, wanted the number of one of 2 items"),
    ("steps.number=1", "config.steps: is 5, which has no number to set"),
    ("steps=fast", "config.steps: is 'fast', wanted an integer"),
    ("steps=1e3", "config.steps: is 1000.0, wanted an integer"),
    ("steps=", "config.steps: is '', wanted an integer"),
    ("data.shuffle=1", "config.data.shuffle: is 1, wanted true or false"),
    ("optimiser.schedule=cosin", "config.optimiser.schedule: is 'cosin', wanted one of 'constant', 'cosine', 'linear'"),
    ("optimiser=3", "config.optimiser: is 3, wanted an object"),
    ("stage=tyo", "config.stage: stage is 'tyo', the nearest there is 'toy'"),
    ("settings.temperature=0", "config.settings: temperature is 0.0, wanted more than 0"),
    ("steps=-1", "config.steps: is -1, wanted at least 0"),
    ("batch_size=0", "config.batch_size: is 0, wanted at least 1"),
    ("accumulate=3", "config.batch_size: is 64, wanted a multiple of accumulate, 3"),
    ("evaluate_every=5", "config.evaluate_every: is 5, but there is no validation"),
    ("ema.decay=1", "config.ema.decay: is 1.0, wanted 0 to 1, less than 1"),
    ("optimiser.eps=0", "config.optimiser.eps: is 0.0, wanted more than 0"),
    ("seed=4294967296", "config.seed: is 4294967296, wanted less than 2**32"),
    ("mesh.tensor=-1", "config.mesh: data, tensor are -1, which only one may be"),
    ("mesh.tensor=0", "config.mesh.tensor: is 0, wanted at least 1, or -1"),
    ("data.sources=()", "config.data.sources: is empty"),
    ("data.sources[1].path=", "config.data.sources[1].path: is empty"),
    (
        "data.sources[0].path=photos",
        'data.sources[0].kind is "scenes", which reads no files; set data.sources[0].kind=auto',
    ),
    ("data.sources[1].weight=0", "config.data.sources[1].weight: is 0.0, wanted more than 0"),
    ("data.sources[1].caption_weights=1,2", "caption_weights: holds 2, wanted one for each of 1 captions"),
    ("data.sources[0].scenes.objects=1,2", "objects: is (1.0, 2.0), wanted 6 frequencies"),
    ("data.aspects=()", "config.data.aspects: is ()"),
    ("data.flip=2", "config.data.flip: is 2.0, wanted 0 to 1"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_wrong_overrides_are_refused(write, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(ONE), ["--config." + override])


@pytest.mark.parametrize("override", ["--steps=3", "--config.steps", "steps=3", "--workdri=x", "10"])
def test_what_is_no_override_is_refused(write, override):
    with pytest.raises(ConfigError, match=re.escape(f"override {override!r}: wanted --config.key=value")):
        load_config(write(ONE), [override])


def test_all_wrong_values_are_told_at_once(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write(ONE), ["--config.steps=-1", "--config.keep=0", "--config.ema.every=0"])
    assert all(f"config.{name}: is" in str(caught.value) for name in ("steps", "keep", "ema.every"))


FILES = [
    (ONE.replace("c.steps", "c.stesp"), "config.stesp: unknown; the nearest field of Experiment is 'steps'"),
    (ONE.replace("c.stage", "c.stgae"), "config.stgae: unknown; the nearest field of Experiment is 'stage'"),
    (SEVERAL.replace("stages=", "satges="), "config.satges: unknown; the nearest valid name is 'stages'"),
    (ONE.replace("count=9", "cuont=9"), "config.data.sources[0].scenes.cuont: unknown; the nearest field of Scenes"),
    (
        ONE.replace("temperature=1", "temprature=1"),
        "config.settings.temprature: unknown; the nearest field of Settings",
    ),
    (ONE.replace('"toy"', "3"), "config.stage: is 3, wanted one of toy, other"),
    (ONE.replace("c.steps = 5", "c.steps = 5.0"), "config.steps: is 5.0, wanted an integer"),
    (ONE.replace("c.steps = 5", "c.steps = c.stpes"), "get_config(None) failed: AttributeError"),
    (ONE.replace("return c", "return 3"), "get_config returned int, wanted a ConfigDict"),
    (ONE.replace("get_config", "make_config"), "has no get_config(arg=None)"),
    ("1 +", "cannot be run: SyntaxError"),
    (SEVERAL.replace('"second")', '"secnod")'), "stages names 'secnod', which the config does not hold; the nearest"),
    (SEVERAL.replace('"second")', '"first")'), "stages names one of first, first twice"),
    (SEVERAL.replace('("first", "second")', "()"), "stages is [], wanted the names of the experiments"),
    (SEVERAL.replace("steps=7", "stesp=7"), "config.second.stesp: unknown; the nearest field of Experiment is 'steps'"),
    (SEVERAL.replace("second=dict", "steps=3, second=dict"), "config.steps: unknown; a config of several stages"),
    (
        SEVERAL.replace('("first", "second")', '("first",)').replace("steps=7", "stesp=7"),
        "config.second.stesp: unknown",  # also where it does not run
    ),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_wrong_files_are_refused(write, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(text))


def test_a_missing_file_is_refused_with_the_nearest(write):
    file = write(ONE, "autoencoder.py")
    with pytest.raises(ConfigError, match=r"no such config file; the nearest there is .*autoencoder\.py"):
        load_config(file.replace("autoencoder", "autoenocder"))
    with pytest.raises(ConfigError, match=r"no such config file$"):
        load_config("/nowhere/at/all.py")


def test_what_is_no_python_file_is_refused(write, tmp_path):
    write(ONE, "b.py")
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/c.json: wanted a .py file with get_config")):
        load_config(write("{}", "c.json"))
    write(ONE, "a.py")
    with pytest.raises(ConfigError, match=r"a folder, wanted a \.py file with get_config; in it: a\.py, b\.py"):
        load_config(str(tmp_path))


def test_an_argument_reaches_the_file(write):
    text = ONE.replace("c.steps = 5", "c.steps = int(arg or 5)")
    assert load(write(text) + ":12").steps == 12
    assert load(write(text)).steps == 5
    with pytest.raises(ConfigError, match="takes no argument, but got '12'"):
        load_config(write(ONE.replace("arg=None", "")) + ":12")


def test_neighbours_can_be_imported_and_are_forgotten(write, tmp_path):
    (tmp_path / "common_parts.py").write_text("STEPS = 21\n")
    file = write("import common_parts\n" + ONE.replace("c.steps = 5", "c.steps = common_parts.STEPS"))
    assert load(file).steps == 21
    (tmp_path / "common_parts.py").write_text("STEPS = 22000\n")
    assert load(file).steps == 22000
    assert "common_parts" not in sys.modules and str(tmp_path) not in sys.path
    assert not (tmp_path / "__pycache__").exists()


def test_a_tree_of_configs_can_name_its_files_from_the_top(write, tmp_path, monkeypatch):
    # As the installed command sees it: from another folder, with an unrelated module of that name around.
    monkeypatch.setitem(sys.modules, "configs", unrelated := type(sys)("configs"))
    for tree, steps in (("one", 31), ("two", 32)):
        (tmp_path / tree / "configs" / "small").mkdir(parents=True)
        (tmp_path / tree / "configs" / "small" / "common.py").write_text(f"STEPS = {steps}\n")
        text = "from configs.small.common import STEPS\n" + ONE.replace("c.steps = 5", "c.steps = STEPS")
        assert load(write(text, f"{tree}/configs/small/recipe.py")).steps == steps
    assert sys.modules["configs"] is unrelated and "configs.small" not in sys.modules


def fields(kind, prefix=""):
    """(place of its holder, name, all names there) of each field down from a dataclass."""
    hints = plain.hints_of(kind) | ({"settings": Settings} if kind is Experiment else {})
    for name, hint in hints.items():
        yield prefix, name, list(hints)
        hint = plain.without_none(hint)
        if hint == tuple[SourceConfig, ...]:
            yield from fields(SourceConfig, f"{prefix}{name}[0].")
        elif dataclasses.is_dataclass(hint) and name != "validation":  # the same as `data`
            yield from fields(hint, f"{prefix}{name}.")


def typo(name, rng):
    """One slip of the fingers: a letter left out, doubled, swapped with the next, or another one in its place."""
    at = int(rng.integers(len(name)))
    kinds = ["double", "swap", "replace", "omit"]
    kind = kinds[rng.integers(len(kinds) - (len(name) < 3))]  # of "b1" without a letter nothing is left
    letter = "abcdefghijklmnopqrstuvwxyz"[rng.integers(26)]
    return {
        "omit": name[:at] + name[at + 1 :],
        "double": name[: at + 1] + name[at:],
        "swap": name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
        "replace": name[:at] + letter + name[at + 1 :],
    }[kind]


def generated_typos(count, seed=0):
    rng = np.random.default_rng(seed)
    there = list(fields(Experiment))
    made = []
    while len(made) < count:
        prefix, name, names = there[len(made) % len(there)]
        wrong = typo(name, rng)
        if wrong not in names and wrong.isidentifier():
            made.append((prefix, name, wrong))
    return made


def test_misspelt_keys_are_refused_with_the_right_name(write):
    # Wanted of 100: all refused, and the field that was meant named for 95. All fields take part, "b1" too.
    file = write(ONE)
    right = 0
    typos = generated_typos(100)
    assert len({(prefix, name) for prefix, name, _ in typos}) == len(list(fields(Experiment)))
    for prefix, name, wrong in typos:
        with pytest.raises(ConfigError, match="unknown; the nearest") as caught:
            load_config(file, [f"--config.{prefix}{wrong}=1"])
        right += str(caught.value).endswith(repr(name))
    assert right >= 95


def test_misspelt_keys_in_files_are_refused_with_the_right_name(write):
    experiment = configure.to_json(load(write(ONE)))
    right = 0
    for prefix, name, wrong in generated_typos(100, seed=1):
        value = json.loads(json.dumps(experiment))
        holder = value
        for part in prefix.replace("[0]", ".0").split(".")[:-1]:
            holder = holder[int(part) if part.isdecimal() else part]
        holder[wrong] = holder.pop(name)
        with pytest.raises(ConfigError, match="unknown; the nearest") as caught:
            load_config(write(f"def get_config():\n    return ConfigDict({value!r})\n"))
        right += str(caught.value).endswith(repr(name))
    assert right >= 95


def test_json_is_complete_and_comes_back(write):
    experiment = load(write(ONE))
    kept = json.loads(json.dumps(configure.to_json(experiment)))
    assert kept["ema"] == {"decay": 0.0, "every": 1} and kept["settings"]["tower"] == {"mode": "frozen", "rank": 8}
    assert configure.from_json(kept) == experiment


def test_digests_tell_experiments_apart(write):
    file = write(ONE)
    assert configure.digest(load(file)) == configure.digest(load(file))
    assert configure.digest(load(file)) != configure.digest(load(file, "--config.seed=1"))
    assert re.fullmatch("[0-9a-f]{64}", configure.digest(load(file)))


def test_differences_are_named(write):
    file = write(ONE)
    old = load(file)
    new = load(file, "--config.optimiser.clip=0.5", "--config.data.sources[1].captions=x,y", "--config.steps=6")
    wanted = [
        'data.sources[1].captions: ["x"] -> ["x", "y"]',
        "optimiser.clip: 1.0 -> 0.5",
        "steps: 5 -> 6",
    ]
    assert configure.differences(old, new) == wanted
    assert configure.differences(configure.to_json(old), configure.to_json(new)) == wanted
    assert configure.differences(old, old) == []
    # A run of an earlier version, which had another field.
    was = configure.to_json(old)
    was["kept"] = was.pop("keep")
    assert configure.differences(was, old) == ["kept: 2 -> (none)", "keep: (none) -> 2"]


def test_arguments_of_configs_are_typed():
    got = parse_arg(
        "steps=20,fast, rate=1,name=7,half=none", steps=10, fast=False, rate=0.5, name="x", half=None, off=True
    )
    assert vars(got) == {"steps": 20, "fast": True, "rate": 1.0, "name": "7", "half": "none", "off": True}
    assert type(got.rate) is float
    assert vars(parse_arg(None, steps=10)) == vars(parse_arg("", steps=10)) == {"steps": 10}
    assert parse_arg("fast=false", fast=True).fast is False


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("stesp=3", "config argument 'stesp': unknown; the nearest option is 'steps'"),
        ("steps", "config argument 'steps': has no value, wanted steps=..."),
        ("steps=x", "config argument 'steps': is 'x', wanted a value like 10"),
        ("steps=1.5", "config argument 'steps': is '1.5', wanted a value like 10"),
        ("fast=1", "config argument 'fast': is '1', wanted a value like False"),
        ("steps=1,steps=2", "config argument 'steps': given twice"),
    ],
)
def test_wrong_arguments_are_refused(arg, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_arg(arg, steps=10, fast=False)


def test_hostile_values_are_only_text(write):
    # Values are read as literals: nothing in them is run.
    with pytest.raises(ConfigError, match="wanted an integer"):
        load_config(write(ONE), ["--config.steps=__import__('os').getpid()"])
    assert overriding.parse("(" * 10_000, int) == "(" * 10_000
