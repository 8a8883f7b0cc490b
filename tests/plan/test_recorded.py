"""Compilations on record, and how the scaling study tells of them."""

import dataclasses
import json

from uae_jax.plan import recorded, scaling
from uae_jax.plan.collectives import Collective


def test_an_entry_is_what_a_plan_wrote():
    """Collectives as they stand in the file of `uae plan --json`."""
    gathers = Collective("all-gather", 12, 9, 3 * 2**20, 2**20, (("bf16[2432,9728]", 9),))
    written = json.loads(json.dumps([dataclasses.asdict(gathers)]))
    case = recorded._entry([], written, config="configs/cold_start.py:size=full", topology="v5p:2x2x2",
                           compiler="libtpu", peak_gib=10.0)  # fmt: skip
    assert case.collectives == (gathers,) and case.stage == "cold_start"
    assert scaling._sends(case) == (
        "- cold_start on v5p:2x2x2 sends, each result of the program once: "
        "all-gather 12 (9 in loops, largest 1.0 MiB), 3 MiB together."
    )


def test_stages_without_a_compilation_are_named(monkeypatch):
    monkeypatch.setattr(recorded, "entries", lambda: [])
    assert "Of pretrain and cold_start and gen_for_understanding and understanding_for_gen no" in scaling.held()


def test_the_page_has_every_entry():
    """Written by `python -m uae_jax.plan.scaling --output docs/results/scaling.md` after a new one."""
    page = (recorded.FILE.parents[2] / "docs/results/scaling.md").read_text()
    for case in recorded.entries():
        assert f"| {case.stage} | {case.topology} |" in page and f"| {case.peak_gib:.2f} |" in page
