"""Twins of GenEval and GenEval++: prompts of every tag, made from scenes, with metadata of the official form.

What a prompt says is a part of its scene's graph, put into the words of the scene world, so that whether a painting is
right is read off the painting. A painting is right if it is all that the prompt asks for and nothing else: stricter
than GenEval, which overlooks further objects unless it counts.
"""

import dataclasses
from collections import Counter
from typing import Any

from uae_jax.bench.scenes import held_out
from uae_jax.data.scenes import Claims, Description, Relation, Scene
from uae_jax.data.scenes.captions import realise
from uae_jax.data.scenes.claims import ATTRIBUTES, describe, main_relation

_FIRST_KIND = {"geneval": 0, "genevalpp": 10}
_KEYS = {"colour": "color", "size": "size", "position": "region"}  # attribute -> key of "include"


@dataclasses.dataclass(frozen=True)
class Tag:
    """What prompts of a tag are about.

    Attributes:
      objects: how many there may be.
      says: attributes that are named of each.
      kinds: how many different ones there are, their places aside; 0: no two share a shape, or a colour that is named.
      related: that it is said how the second stands to the first.
    """

    objects: tuple[int, ...]
    says: tuple[str, ...]
    kinds: int = 0
    related: bool = False

    def claims(self, scene: Scene) -> Claims:
        """What a prompt says of a scene."""
        unsaid = [name for name in ATTRIBUTES if name not in self.says]
        entities = tuple(describe(item).without(*unsaid) for item in scene.objects)
        relations = (Relation(1, main_relation(scene.objects[1], scene.objects[0]), 0),) if self.related else ()
        return Claims(entities, relations=relations)

    def fits(self, scene: Scene) -> bool:
        """Whether a scene is of this tag."""
        if self.kinds:
            return len({entity.without("position") for entity in self.claims(scene).entities}) == self.kinds
        return all(held_out.all_differ(scene, name) for name in ("shape", "colour") if name in self.says)


TAGS = {
    "geneval": {
        "single_object": Tag((1,), ("shape",)),
        "two_object": Tag((2,), ("shape",)),
        "counting": Tag((2, 3, 4), ("shape",), kinds=1),
        "colors": Tag((1,), ("shape", "colour")),
        "position": Tag((2,), ("shape",), related=True),
        "color_attr": Tag((2,), ("shape", "colour")),
    },
    "genevalpp": {
        "color_attr": Tag((3,), ("shape", "colour")),
        "counting": Tag((4, 5, 6), ("shape",), kinds=1),
        "color_count_attr": Tag((3, 4, 5), ("shape", "colour"), kinds=2),
        "color_spatial_attr": Tag((3, 4), ("shape", "colour", "position")),
        "spatial_count_attr": Tag((3, 4, 5), ("shape", "position"), kinds=2),
        "size_spatial_attr": Tag((3, 4), ("shape", "size", "position")),
        "multi_object_count_attr": Tag((4, 5, 6), ("shape",), kinds=2),
    },
}


def metadata(benchmark: str, count: int) -> list[dict[str, Any]]:
    """Lines of a benchmark's metadata, `count` of each tag."""
    lines = []
    for kind, (name, tag) in enumerate(TAGS[benchmark].items(), start=_FIRST_KIND[benchmark]):
        repeat = {0: 0.0, 1: 1.0}.get(tag.kinds, 0.6)  # so that scenes that fit are not rare
        for scene, draws in held_out.draw(kind, count, held_out.of(*tag.objects, repeat=repeat), tag.fits):
            claims = tag.claims(scene)
            line = {"tag": name, "include": _include(claims), "prompt": realise(claims, draws, sentences=False)}
            if name == "counting":
                line["exclude"] = [{"class": each["class"], "count": each["count"] + 1} for each in line["include"]]
            lines.append(line)
    return lines


def _include(claims: Claims) -> list[dict[str, Any]]:
    groups: dict[Description, int] = Counter(claims.entities)  # in the order of the scene's objects
    include = []
    for entity, count in groups.items():
        said = {key: getattr(entity, name) for name, key in _KEYS.items() if getattr(entity, name)}
        include.append({"class": entity.shape, "count": count, **said})
    for relation in claims.relations:
        include[relation.subject]["position"] = [relation.kind, relation.other]
    return include
