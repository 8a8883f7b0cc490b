"""Plain values to dataclasses and back: nothing is lost, and what does not fit is refused with the remedy."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Literal

import pytest

from uae_jax import plain
from uae_jax.plain import ConfigError, from_plain, to_plain


@dataclasses.dataclass(frozen=True)
class Scaling:
    epsilon: float = 1e-5
    gain: float = 1.0


@dataclasses.dataclass(frozen=True)
class Everything:
    """Each kind of field that a config may have."""

    number: int
    rate: float = 0.5
    flag: bool = False
    name: str = "x"
    maybe: int | None = 3
    either: int | tuple[int, ...] = 1
    pair: tuple[int, str] = (1, "a")
    nested: tuple[tuple[int, ...], ...] = ((1, 2), ())
    parts: tuple[Scaling, ...] = ()
    optional: Scaling | None = None
    scaling: Scaling = Scaling(gain=3.0)
    mode: Literal["a", "b"] = "a"
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    "config",
    [
        Everything(1),
        Everything(2, 1e-6, True, "é", None, (1, 2), (3, "b"), ((), (4,)), (Scaling(), Scaling(1.0)), None),
        Everything(3, rate=2.0, optional=Scaling(gain=0.1), mode="b", shares={"one": 1.0}),
        Everything(4, rate=0.1 + 0.2),  # JSON keeps all 17 digits
    ],
)
def test_dataclasses_survive_json(config):
    text = json.dumps(to_plain(config))
    again = from_plain(Everything, json.loads(text), "here")
    assert again == config and type(again.rate) is float
    assert json.loads(text)["pair"] == list(config.pair)  # a tuple is a list there


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "here: lacks number"),
        ([], "here: is [], wanted an object"),
        ({"number": 1.0}, "here.number: is 1.0, wanted an integer"),
        ({"number": True}, "here.number: is True, wanted an integer"),
        ({"number": 1, "mode": "c"}, "here.mode: is 'c', wanted one of 'a', 'b'"),
        ({"number": 1, "pair": [1]}, "here.pair: is [1], wanted a list like"),
        ({"number": 1, "either": "x"}, "here.either: is 'x', wanted a list"),
        ({"number": 1, "flag": 1}, "here.flag: is 1, wanted true or false"),
        ({"number": 1, "name": None}, "here.name: is None, wanted a string"),
        ({"number": 1, "shares": {"one": "x"}}, "here.shares.one: is 'x', wanted a number"),
        ({"number": 1, "shares": [1]}, "here.shares: is [1], wanted an object"),
        ({"number": 1, "scaling": None}, "here.scaling: is None, wanted an object"),
        (
            {"number": 1, "parts": [{"gian": 1.0}]},
            "here.parts[0].gian: unknown; the nearest field of Scaling is 'gain'",
        ),
        # Its name is right, its place is not; of two places the first one.
        ({"number": 1, "epsilon": 1.0}, "here.epsilon: unknown; the nearest field of Everything is 'optional.epsilon'"),
    ],
)
def test_what_does_not_fit_is_refused(value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_plain(Everything, value, "here")


def test_what_is_left_out_of_a_part_is_that_parts_default():
    # `Everything` scales by 3 where nothing is said, other than `Scaling` itself, which scales by 1.
    built = from_plain(Everything, {"number": 1, "scaling": {"epsilon": 0.5}, "optional": {"epsilon": 0.5}}, "here")
    assert built.scaling == Scaling(0.5, 3.0)
    assert built.optional == Scaling(0.5, 1.0)


def test_a_field_may_be_narrowed():
    @dataclasses.dataclass(frozen=True)
    class Loose:
        settings: object
        other: int = 0

    built = from_plain(Loose, {"settings": {"gain": 2}}, "here", narrowed={"settings": Scaling})
    assert built == Loose(Scaling(gain=2.0))
    with pytest.raises(ConfigError, match=r"here.settings.gian: unknown; the nearest field of Scaling is 'gain'"):
        from_plain(Loose, {"settings": {"gian": 2}}, "here", narrowed={"settings": Scaling})


def test_a_dataclass_may_refuse_values_itself():
    @dataclasses.dataclass(frozen=True)
    class Even:
        number: int = 0

        def __post_init__(self):
            if self.number % 2:
                raise ValueError(f"number is {self.number}, wanted an even one")

    with pytest.raises(ConfigError, match="here: number is 3, wanted an even one"):
        from_plain(Even, {"number": 3}, "here")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("stesp", "steps"), ("step", "steps"), ("batchsize", "batch_size"), ("BATCH_SIZE", "batch_size"), ("sed", "seed")],
)
def test_the_nearest_name(typo, meant):
    assert plain.nearest(typo, ["seed", "steps", "batch_size", "keep"]) == meant
