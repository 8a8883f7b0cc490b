"""Every setting of a config, its type, default and meaning, out of the dataclasses, for reference/settings.md.

The source is read, not imported. From `Experiment` on, whatever dataclass a field names gets a table, and so do the
settings of every stage that the registry names.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from api import load
from docstrings import entries, escaped, sections
from griffe import Attribute, Class, Expr, ExprName, Module

_START = "uae_jax.training.config.Experiment"
_REGISTRY = "uae_jax.stages.registry"
_OWN_PAGE = ("pretrain", "cold_start", "gen_for_understanding", "understanding_for_gen")  # of the others there is one


def markdown(root: Path) -> str:
    """A table for each dataclass."""
    return Reference(root).text()


class Reference:
    """Collects dataclasses and writes a table of each."""

    def __init__(self, root: Path):
        """Reads the package below `root`."""
        self.package = load(root)
        self.stages = ast.literal_eval(str(self._module(_REGISTRY)["_STAGES"].value))
        self.settings = {name: self._settings_of(name, kind) for name, kind in self.stages.items()}

    def text(self) -> str:
        """The whole page."""
        general = self._closure([self._find(_START)])
        of_stages = self._closure(list(self.settings.values()))
        shared = [kind for kind in of_stages if kind not in general and kind not in self.settings.values()]
        parts = ["## A run\n", *map(self._shared, general), "## Stages\n"]
        for name, kind in self.settings.items():
            page = f"../stages/{name if name in _OWN_PAGE else 'foundations'}.md"
            parts += [f"### Stage `{name}`\n\nIts mathematics: [{name}]({page}).\n", self._table(kind)]
        return "\n".join([*parts, "## Parts of stages' settings\n", *map(self._shared, shared)])

    def _settings_of(self, stage: str, class_name: str) -> Class:
        value = self._module(f"uae_jax.stages.{stage}")[class_name].members["Settings"].value
        return self._find(value.canonical_path)

    def _module(self, path: str) -> Module:
        return self.package[path.removeprefix("uae_jax.")]

    def _find(self, path: str) -> Class | Attribute:
        found = self.package[path.removeprefix("uae_jax.")]
        return found.final_target if found.is_alias else found

    def _closure(self, kinds: list[Class]) -> list[Class]:
        """The classes, their bases, and all dataclasses that their fields name, each once, in the order of mention."""
        found: list[Class] = []
        waiting = list(kinds)
        while waiting:
            kind = waiting.pop(0)
            if kind in found:
                continue
            found.append(kind)
            waiting += self._bases(kind)
            waiting += [
                each for field in fields(kind) for each in self._named(field.annotation) if "dataclass" in each.labels
            ]
        return found

    def _bases(self, kind: Class) -> list[Class]:
        return [base for base in self._named(kind.bases) if "dataclass" in base.labels]

    def _named(self, expressions: object) -> Iterator[Class]:
        """Classes of the package that annotations name, aliases of them followed."""
        for one in expressions if isinstance(expressions, list) else [expressions]:
            for name in one.iterate(flat=True) if isinstance(one, Expr) else ():
                if isinstance(name, ExprName) and name.canonical_path.startswith("uae_jax."):
                    target = self._find(name.canonical_path)
                    if isinstance(target, Class):
                        yield target

    def _shared(self, kind: Class) -> str:
        """A table below a heading that others link to."""
        return f"### `{kind.name}`\n\n{escaped(_summary(kind))}\n\n{self._table(kind)}"

    def _table(self, kind: Class) -> str:
        described, bases = descriptions(kind), self._bases(kind)
        for base in bases:
            described = descriptions(base) | described
        lines = []
        if bases:
            links = ", ".join(f"[`{base.name}`](#{base.name.lower()})" for base in bases)
            lines.append(f"All of {links}, and these, some of which only have another default than there:\n")
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        for field in fields(kind):
            default = "" if field.value is None else f"`{self._constant(field.value)}`"
            meaning = described.get(field.name) or next(map(_summary, self._named(field.annotation)), "")
            lines.append(f"| `{field.name}` | {self._type(field.annotation)} | {default} | {escaped(meaning)} |")
        return "\n".join(lines) + "\n"

    def _type(self, annotation: Expr | str) -> str:
        """A field's type, with links to tables and without names for lists of choices."""
        if isinstance(annotation, ExprName) and annotation.canonical_path.startswith("uae_jax."):
            target = self._find(annotation.canonical_path)
            if isinstance(target, Class):
                return f"[`{target.name}`](#{target.name.lower()})"
            annotation = target.value
        links = [f"[`{kind.name}`](#{kind.name.lower()})" for kind in self._named(annotation)]
        shown = re.sub(r"\bLiteral\[(.*?)\]", r"\1", str(annotation)).replace("'", '"')
        return f"`{shown}`" + (f" ({', '.join(links)})" if links else "")

    def _constant(self, value: Expr | str) -> str:
        """A default, where it is a constant of the package what that is."""
        if isinstance(value, ExprName) and value.canonical_path.startswith("uae_jax."):
            value = self._find(value.canonical_path).value
        return str(value).replace("'", '"')


def fields(kind: Class) -> list[Attribute]:
    """What a dataclass itself declares, in its order."""
    own = [member for member in kind.members.values() if isinstance(member, Attribute)]
    return [member for member in own if member.annotation is not None and "property" not in member.labels]


def descriptions(kind: Class) -> dict[str, str]:
    """Field -> what the docstring says of it."""
    found = {}
    for title, body in sections(kind.docstring.value):
        if title == "Attributes":
            for names, text in entries(body):
                found |= {name.strip(): text for name in names.split(",")}
    return found


def _summary(kind: Class) -> str:
    return kind.docstring.value.partition("\n")[0]
