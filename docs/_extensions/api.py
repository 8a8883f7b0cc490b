"""What the modules of a package offer, out of their docstrings and signatures, for api/*.md.

The source is read, not imported.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import griffe
from docstrings import entries, escaped, sections, to_markdown
from griffe import Class, Function, Module, Parameter, ParameterKind

_PACKAGE = "uae_jax"
_LEFT_OUT = ("cli", "commands", "command", "data_commands")  # what the command line does, see reference/commands.md
_WIDTH = 100
_PREFIX = {ParameterKind.var_positional: "*", ParameterKind.var_keyword: "**"}


def markdown(root: Path, name: str = "") -> str:
    """The page of a package, or without a name the table of all that have one."""
    package = load(root)
    if not name:
        return _overview(package, root)
    found = package if name == _PACKAGE else package[name.removeprefix(f"{_PACKAGE}.")]
    sections = (block for title, module in _modules(found, root) for block in _module(title, module))
    return "\n\n".join([_summary(found), *sections])


@functools.cache
def load(root: Path) -> Module:
    """The whole package, read once for all pages."""
    return griffe.load(_PACKAGE, search_paths=[root], try_relative_path=False, allow_inspection=False)


def _overview(package: Module, root: Path) -> str:
    lines = ["| package | what |", "|---|---|"]
    for each in [package, *_below(package)]:
        if _page(each, root).is_file():
            lines.append(f"| [`{each.path}`]({each.path}.md) | {escaped(_summary(each))} |")
    return "\n".join(lines)


def _page(package: Module, root: Path) -> Path:
    return root / "docs/api" / f"{package.path}.md"


def _below(package: Module) -> Iterator[Module]:
    for module in sorted(package.modules.values(), key=lambda each: each.name):
        if module.is_init_module:
            yield module
            yield from _below(module)


def _modules(package: Module, root: Path, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """(title, module) of what a package's page shows; packages below it that have no page of their own among them."""
    for module in sorted(package.modules.values(), key=lambda each: each.name):
        if not module.is_init_module:
            if module.docstring and module.name not in _LEFT_OUT and not module.name.startswith("_"):
                yield f"{prefix}{module.name}", module
        elif not _page(module, root).is_file():
            yield from _modules(module, root, f"{prefix}{module.name}.")


def _summary(module: Module) -> str:
    return module.docstring.value.partition("\n")[0] if module.docstring else ""


def _module(title: str, module: Module) -> Iterator[str]:
    yield f"## `{title}`"
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
        if (
            not member.is_alias
            and not member.name.startswith("_")
            and isinstance(member, Function)
            and member.docstring
        ):
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
