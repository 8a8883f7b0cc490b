"""Folders as `uae train` leaves them, small and without training."""

import html.parser
import json
import re

import numpy as np
from PIL import Image

START = 1_795_500_000.0  # 2026-11-24 06:00 UTC


def write_run(folder, lines, *, stage="caption_sft", steps=100, done=True, pictures=None, **settings):
    """A workdir of one stage.

    Args:
      folder: made.
      lines: (step, name -> JSON value) in order; they are ten seconds apart.
      steps: that the configuration says.
      done: whether the model is there.
      pictures: name -> steps.
      settings: of the stage.
    """
    folder.mkdir(parents=True)
    config = {"stage": stage, "steps": steps, "settings": settings}
    (folder / "config.json").write_text(json.dumps(config))
    written = [{"step": step, "time": START + 10 * i, **values} for i, (step, values) in enumerate(lines)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    if done:
        (folder / "model").mkdir()
    for name, at in (pictures or {}).items():
        (folder / "pictures" / name).mkdir(parents=True)
        for step in at:
            Image.new("RGB", (32, 24), (step % 256, 0, 0)).save(folder / "pictures" / name / f"{step:08d}.png")
    return folder


def noise(width, height, seed=0):
    """An image that no compression makes small."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


class Page(html.parser.HTMLParser):
    """Collects tags and what is written; checks that what is opened is closed, and that nothing is loaded."""

    EMPTY = ("meta", "img", "br", "wbr", "input")

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.images, self.words = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []
        assert not re.search(r'(src|href|action|data)="(?!data:|#)', source)
        assert not re.search(r"url\(|@import|<link|<iframe|<object|<base", source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not any(name.startswith("on") for name in attrs)
        self.tags.append((tag, attrs))
        if tag == "img":
            self.images.append(attrs["src"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def having(self, tag, **wanted):
        return [attrs for name, attrs in self.tags if name == tag and wanted.items() <= attrs.items()]
