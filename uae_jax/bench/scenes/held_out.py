"""Scenes that benchmarks are made of. No recipe trains on scenes of this seed or looks at them."""

from collections.abc import Callable, Iterator

from uae_jax.data import scenes as world
from uae_jax.data.scenes import Scene, SceneConfig
from uae_jax.data.scenes.draws import Draws
from uae_jax.data.scenes.graph import SIDE_PX

SEED = 3
SIDE = SIDE_PX  # of pictures, unless another size is asked for
_KIND = 1_000_000  # scenes of a kind, those that do not fit included, so that kinds share none


def draw(
    kind: int, count: int, config: SceneConfig = SceneConfig(), fits: Callable[[Scene], bool] = lambda scene: True
) -> Iterator[tuple[Scene, Draws]]:
    """Scenes of a kind, and for each what decides the words about it. More of them begin with the same ones.

    Args:
      kind: number of the kind among all.
      count: scenes wanted.
      config: what is drawn.
      fits: whether a scene will do.
    """
    found = 0
    for index in range(kind * _KIND, (kind + 1) * _KIND):
        scene = world.sample_scene((SEED, index), config)
        if fits(scene):
            yield scene, Draws(world.scene_rng(SEED + 1000, index))
            found += 1
        if found == count:
            return
    raise ValueError(f"{found} of {_KIND} scenes fit, wanted {count}; ask for fewer")


def of(*objects: int, repeat: float = 0.25) -> SceneConfig:
    """Scenes of so many objects, all numbers as likely; `repeat` as in `SceneConfig`."""
    return SceneConfig(counts=tuple(float(number in objects) for number in range(1, 7)), repeat=repeat)


def all_differ(scene: Scene, attribute: str) -> bool:
    """Whether no two objects have the same value of an attribute."""
    values = [getattr(item, attribute) for item in scene.objects]
    return len(set(values)) == len(values)
