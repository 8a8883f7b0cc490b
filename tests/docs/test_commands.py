"""Every command that README.md and docs/ show is one that there is, with flags that there are."""

import argparse
import contextlib
import io

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, commands, mentioned
from uae_jax import cli
from uae_jax.training import configure


def name(page):
    return str(page.relative_to(ROOT))


def complaint(words):
    """What the parser has against a command; "" if nothing."""
    parser, said = cli.build_parser(), io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            args, rest = parser.parse_known_args(words[1:])
        except SystemExit:
            return said.getvalue().splitlines()[-1]
    overrides = rest if hasattr(args, "overrides") else []
    strange = [word for word in rest if not (word in overrides and word.startswith("--config."))]
    return f"unrecognized: {' '.join(strange)}" if strange else ""


def subcommands(parser):
    """Name -> parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return below[0].choices if below else {}


def is_command_alone(words):
    """Whether the words name a command and give it nothing."""
    parser = cli.build_parser()
    for word in words[1:]:
        if word not in subcommands(parser):
            return False
        parser = subcommands(parser)[word]
    return True


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_code_parse(page):
    for words in commands(page):
        if words[0] == "uae":
            assert not complaint(words), f"{' '.join(words)}: {complaint(words)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_running_text_parse(page):
    for words in mentioned(page):
        if words[1:] == ["COMMAND", "--help"] or is_command_alone(words):
            continue
        assert not complaint(words), f"{' '.join(words)}: {complaint(words)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_scripts_in_code_are_there(page):
    for words in commands(page):
        files = [word for word in words[:2] if word.startswith("launch/")]
        assert all((ROOT / file).is_file() for file in files), " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configs_in_code_load_with_their_arguments_and_overrides(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words[:2] not in (["uae", "train"], ["uae", "demo"], ["uae", "data"]):
            continue
        file = words[words.index("--config") + 1] if "--config" in words else "uae_jax/demo/config.py"
        overrides = [word for word in words if word.startswith("--config.")]
        if file.startswith(("configs/", "uae_jax/")):  # others are the reader's own
            assert configure.load_config(file, overrides)


def test_the_checks_see_what_is_wrong():
    assert "--colour" in complaint(["uae", "caption", "a.png", "--colour"])
    assert complaint(["uae", "bench", "unified", "--reference", "photos"])  # no --output
    assert complaint(["uae", "paint", "a"])
    assert "--config.x" in complaint(["uae", "caption", "a.png", "--config.x=1"])  # only some take overrides
    assert not complaint(["uae", "train", "--config", "a.py", "--workdir", "b", "--config.steps=1"])


def test_there_is_code_to_check():
    found = [words for page in PAGES for words in commands(page) if words[0] == "uae"]
    assert len(found) > 40
    assert sum(len(blocks(page, "python")) for page in PAGES) > 5
