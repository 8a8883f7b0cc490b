"""Questions about pictures of scenes, with choices and without, as `uae bench vqa` takes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from uae_jax.bench.scenes import held_out
from uae_jax.data.scenes import Scene, render
from uae_jax.data.scenes.draws import Draws
from uae_jax.data.scenes.graph import COLOURS, POSITIONS, SHAPES
from uae_jax.data.scenes.lexicon import COLOUR_WORDS, NOUNS, NUMBERS, PLACES

CHOICES = 4
FORMS = ("choices", "free")
_FIRST_KIND = 30
# A question: its text, the right answer's name, and what each name that could be one is called, the usual way first.
Asked = tuple[str, str, dict[str, tuple[str, ...]]]


def _colour(scene: Scene, draws: Draws) -> Asked | None:
    item = _only(scene, "shape", draws)
    return item and (f"What colour is the {item.shape}?", item.colour, {name: COLOUR_WORDS[name] for name in COLOURS})


def _shape(scene: Scene, draws: Draws) -> Asked | None:
    item = _only(scene, "colour", draws)
    called = {name: tuple(one for one, _ in NOUNS[name]) for name in SHAPES}
    return item and (f"What shape is the {item.colour} object?", item.shape, called)


def _count(scene: Scene, draws: Draws) -> Asked | None:
    shape = draws.choice(scene.objects).shape
    number = sum(item.shape == shape for item in scene.objects)
    called = {word: (word, str(i)) for i, word in enumerate(NUMBERS, start=1)}
    return f"How many {NOUNS[shape][0][1]} are there?", NUMBERS[number - 1], called


def _position(scene: Scene, draws: Draws) -> Asked | None:
    item = _only(scene, "shape", draws)
    return item and (f"Where is the {item.shape}?", item.position, {name: (*PLACES[name], name) for name in POSITIONS})


TOPICS: dict[str, Callable[[Scene, Draws], Asked | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "position": _position,
}


def write(count: int, file: Path, side: int) -> None:
    """Writes questions, `count` of each topic and form, and beside them the pictures that they are about.

    Args:
      count: see above.
      file: JSON lines as `questions.read` takes them; pictures go into the folder `images` beside it.
      side: of a picture, in pixels.
    """
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, topic in enumerate(TOPICS):
        for form in FORMS:
            kind = _FIRST_KIND + len(FORMS) * number + FORMS.index(form)
            for i, (scene, asked, draws) in enumerate(_some(kind, count, TOPICS[topic])):
                name = f"images/{topic}_{form}_{i:03d}.png"
                Image.fromarray(render(scene, side)).save(file.parent / name)
                lines.append({"image": name, **_line(asked, form, draws), "task": f"{topic}, {form}"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _some(kind: int, count: int, ask: Callable[[Scene, Draws], Asked | None]):
    """Scenes that allow the question, with it."""
    found = 0
    for scene, draws in held_out.draw(kind, 100 * count):
        if asked := ask(scene, draws):
            yield scene, asked, draws
            found += 1
        if found == count:
            return


def _line(asked: Asked, form: str, draws: Draws) -> dict[str, Any]:
    text, right, called = asked
    if form == "free":
        return {"question": text, "answer": list(called[right])}
    others = draws.shuffled([name for name in called if name != right])[: CHOICES - 1]
    choices = [called[name][0] for name in draws.shuffled([right, *others])]
    return {"question": text, "choices": choices, "answer": called[right][0]}


def _only(scene: Scene, attribute: str, draws: Draws):
    """An object that no other shares the attribute's value with, or None."""
    values = [getattr(item, attribute) for item in scene.objects]
    alone = [item for item in scene.objects if values.count(getattr(item, attribute)) == 1]
    return draws.choice(alone) if alone else None
