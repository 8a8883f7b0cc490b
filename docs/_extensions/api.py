"""What the modules of a package offer, out of their docstrings and signatures, for api/*.md.

The source is read, not imported.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import griffe
from griffe import Class, Function, Module, Parameter, ParameterKind
from sphinx.errors import SphinxError

from docstrings import entries, escaped, sections, to_markdown

_PACKAGE = "uae_jax"
_LEFT_OUT = ("cli", "commands", "command", "data_commands")  # what the command line does, see reference/commands.md
_WIDTH = 100
_PREFIX = {ParameterKind.var_positional: "*", ParameterKind.var_keyword: "**"}


def markdown(root: Path, name: str = "") -> str:
    """The page of a package, or without a name the table of all of them.

    Raises:
      SphinxError: if a package has no page.
    """
    package = load(root)
    if not name:
        return _overview(package, root)
    found = package if name == _PACKAGE else package[name.removeprefix(f"{_PACKAGE}.")]
    return "\n\n".join([_summary(found), *(block for module in _modules(found) for block in _module(module))])


@functools.cache
def load(root: Path) -> Module:
    """The whole package, read once for all pages."""
    return griffe.load(_PACKAGE, search_paths=[root], try_relative_path=False, allow_inspection=False)


def packages(package: Module) -> Iterator[Module]:
    """All packages that have modules to show, the outermost first."""
    if _modules(package):
        yield package
    for module in sorted(package.modules.values(), key=lambda each: each.name):
        if module.is_init_module:
            yield from packages(module)


def _overview(package: Module, root: Path) -> str:
    lines = ["| package | what |", "|---|---|"]
    for each in packages(package):
        if not (root / "docs/api" / f"{each.path}.md").is_file():
            raise SphinxError(f"docs/api/{each.path}.md: missing, wanted a page for the package of this name")
        lines.append(f"| [`{each.path}`]({each.path}.md) | {escaped(_summary(each))} |")
    return "\n".join(lines)


def _modules(package: Module) -> list[Module]:
    found = [module for module in package.modules.values() if not module.is_init_module]
    return sorted((m for m in found if m.docstring and m.name not in _LEFT_OUT), key=lambda each: each.name)


def _summary(module: Module) -> str:
    return module.docstring.value.partition("\n")[0] if module.docstring else ""


def _module(module: Module) -> Iterator[str]:
    yield f"## `{module.name}`"
    yield to_markdown(module.docstring.value)
    for member in module.members.values():
        if member.is_alias or member.name.startswith("_") or not member.docstring:
            continue
        if isinstance(member, Function):
            yield from _function(member, "###")
        elif isinstance(member, Class):
            yield from _class(member)


def _class(kind: Class) -> Iterator[str]:
    yield f"### `{kind.name}`"
    init = kind.members.get("__init__")
    bases = f"({', '.join(map(str, kind.bases))})" if kind.bases else ""
    yield f"```python\nclass {kind.name}{bases}\n```"
    yield from _docstring(kind.docstring.value)
    if isinstance(init, Function) and init.docstring:
        yield _signature(init, kind.name)
        yield from _docstring(init.docstring.value)
    for member in kind.members.values():
        if not member.is_alias and not member.name.startswith("_") and isinstance(member, Function) and member.docstring:
            yield from _function(member, "####")


def _function(function: Function, heading: str) -> Iterator[str]:
    yield f"{heading} `{function.name}`"
    yield _signature(function, f"def {function.name}")
    yield from _docstring(function.docstring.value)


def _docstring(text: str) -> Iterator[str]:
    for title, body in sections(text):
        if not title:
            yield to_markdown(body)
        elif title in ("Returns", "Yields"):
            yield f"*{title}* {escaped(' '.join(body.split()))}"
        else:
            listed = (f"- {_names(names)}: {escaped(told)}" for names, told in entries(body))
            yield "\n".join([f"*{title}*\n", *listed])


def _names(names: str) -> str:
    return ", ".join(f"`{name.strip()}`" for name in names.split(","))


def _signature(function: Function, name: str) -> str:
    shown = list(_parameters(function))
    returns = f" -> {function.returns}" if function.returns is not None and name.startswith("def ") else ""
    line = f"{name}({', '.join(shown)}){returns}"
    if len(line) > _WIDTH:
        listed = "".join(f"    {parameter},\n" for parameter in shown)
        line = f"{name}(\n{listed}){returns}"
    return f"```python\n{line}\n```"


def _parameters(function: Function) -> Iterator[str]:
    named = False
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is ParameterKind.keyword_only and not named:
            yield "*"
        named = named or parameter.kind in (ParameterKind.keyword_only, ParameterKind.var_positional)
        yield _parameter(parameter)


def _parameter(parameter: Parameter) -> str:
    prefix = _PREFIX.get(parameter.kind, "")
    kind = f": {parameter.annotation}" if parameter.annotation is not None else ""
    default = ""
    if parameter.default is not None and not prefix:
        default = f" = {parameter.default}" if kind else f"={parameter.default}"
    return f"{prefix}{parameter.name}{kind}{default}"
