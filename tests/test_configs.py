"""Every file in `configs/` loads, says how it is run, and names the file that it is in."""

import ast
import re
from pathlib import Path

import pytest

from uae_jax.data.loader import open_sources
from uae_jax.training import configure
from uae_jax.training.configure import ConfigError

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "configs").rglob("*.py") if "def get_config" in path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_loads_and_its_docstring_says_how_to_run_it(path):
    experiments = configure.load_config(str(path))
    assert experiments
    text = ast.get_docstring(ast.parse(path.read_text()))
    command = re.search(r"uae train --config (\S+?)(:\S*)? ", text)
    assert command and command.group(1) == str(path.relative_to(ROOT))


def test_there_are_configs():
    assert len(FILES) >= 4


@pytest.mark.parametrize("size", ["tiny", "small", "full"])
def test_nothing_is_evaluated_on_that_was_not_named(size):
    ((_, experiment),) = configure.load_config(str(ROOT / f"configs/pretrain.py:size={size},data=photos"))
    assert experiment.validation is None and experiment.evaluate_every == 0
    ((_, experiment),) = configure.load_config(str(ROOT / f"configs/pretrain.py:size={size},data=photos,held_out=more"))
    assert experiment.validation.sources[0].path == "more" and experiment.evaluate_every
    with pytest.raises(ConfigError, match="held_out is 'more', but data is not given; give both"):
        configure.load_config(str(ROOT / f"configs/pretrain.py:size={size},held_out=more"))


def test_data_that_was_not_named_is_refused_where_it_is_opened():
    ((_, experiment),) = configure.load_config(str(ROOT / "configs/pretrain.py:size=full"))  # one may plan without
    with pytest.raises(ValueError, match=r"no data is named: data=\.\.\. is needed"):
        open_sources(experiment.data)


@pytest.mark.parametrize("of", ["gen_for_understanding", "understanding_for_gen"])
def test_a_control_differs_in_nothing_but_what_it_learns_from(of):
    ((_, treated),) = configure.load_config(str(ROOT / f"configs/{of}.py:steps=7,seed=3"))
    ((_, control),) = configure.load_config(str(ROOT / f"configs/control.py:of={of},steps=7,seed=3"))
    for name in ("optimiser", "ema", "steps", "batch_size", "seed"):
        assert getattr(control, name) == getattr(treated, name), name
    tower = {"gen_for_understanding": "encoder", "understanding_for_gen": "decoder"}[of]
    assert getattr(control.settings, tower) == getattr(treated.settings, tower)
    # The same scenes; only the control is told what is in them.
    seeds = {experiment.data.sources[0].scenes.seed for experiment in (treated, control)}
    assert len(seeds) == 1 and control.data.with_captions and not treated.data.with_captions


def test_stages_that_take_turns_paint_alike():
    for size in ("tiny", "full"):
        experiments = configure.load_config(str(ROOT / f"configs/alternate.py:size={size},rounds=2"))
        assert len({experiment.settings.paint.guidance for _, experiment in experiments}) == 1


def test_a_stage_that_comes_again_sees_other_pictures():
    experiments = configure.load_config(str(ROOT / "configs/alternate.py:rounds=3,seed=2"))
    seeds = [(experiment.seed, experiment.data.sources[0].scenes.seed) for _, experiment in experiments]
    assert seeds[0] == seeds[1] == (2, 22) and len(set(seeds)) == 3  # both stages of a round may see the same ones
