"""A plan in words and in JSON."""

from typing import Any

from uae_jax.plan import limits
from uae_jax.plan.compiling import GIB
from uae_jax.plan.planning import Plan


def text(plan: Plan) -> str:
    """A page about a plan."""
    parts = [_head(plan), _memory(plan), _work(plan), _collectives(plan), _notes(plan)]
    return "\n\n".join(part for part in parts if part)


def to_json(plan: Plan) -> dict[str, Any]:
    """What `text` says, and the figures behind it; bytes and operations are per chip or per image as named."""
    memory, compiled = plan.memory, plan.compiled
    return {
        "stage": plan.name,
        "topology": plan.topology.name,
        "chips": plan.topology.count,
        "mesh": plan.mesh,
        "source": "closed forms" if compiled is None else "compiler",
        "why_closed_forms": plan.why_not,
        "parameters": plan.counts,
        "bytes_per_chip": {
            **{name: getattr(memory, name) for name in _ROWS},
            "peak_closed_form": memory.peak,
            "peak_compiled": None if compiled is None else compiled.peak,
            "arguments_compiled": None if compiled is None else compiled.arguments,
            "limit": plan.limit,
        },
        "fits": plan.fits,
        "remedy": plan.remedy,
        "micro_batch_per_chip": {"configured": memory.samples, "largest": plan.largest},
        "flops_per_image": {phase.name: phase.work.total for phase in plan.phases} | {"all": plan.flops},
        "seconds_per_step": {
            "ideal": plan.ideal,
            "expected": plan.expected,
            "phases": [vars(each) | {"ideal": each.ideal} for each in plan.times],
        },
        "assumptions": vars(plan.assumptions),
        "uncounted": plan.uncounted,
        "collectives": [vars(each) for each in plan.collectives],
        "compile_seconds": None if compiled is None else compiled.seconds,
        "warnings": plan.warnings,
        "stand_ins": plan.stand_ins,
    }


_ROWS = {
    "parameters": "trained parameters",
    "optimiser": "optimiser",
    "ema": "average of the parameters",
    "state": "the stage's own state",
    "frozen": "frozen weights",
    "batch": "batch",
    "gradients": "gradients",
    "copies": "weights, cast",
    "activations": "activations",
    "rollout": "or, before gradients: rollout",
}


def _head(plan: Plan) -> str:
    topology, chip = plan.topology, plan.topology.chip
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one chip"
    source = "the TPU compiler" if plan.compiled else f"closed forms, for {plan.why_not}"
    experiment = plan.experiment
    return "\n".join(
        [
            f"{plan.name} on {topology.name}: {topology.count} chips, {mesh}",
            f"each {chip.flops / 1e12:.0f} TFLOP/s, {chip.memory / 1e9:.0f} GB at {chip.bandwidth / 1e12:.2f} TB/s, "
            f"{chip.links / 1e9:.0f} GB/s to others",
            f"batch of {experiment.batch_size} images a step; micro-batches of {plan.memory.samples} on a chip",
            f"{plan.counts['trained']:,} parameters are trained, {plan.counts['frozen']:,} are frozen",
            f"memory is of {source}; work and times are of closed forms",
        ]
    )


def _memory(plan: Plan) -> str:
    memory = plan.memory
    lines = ["memory of a chip, GiB"]
    for name, title in _ROWS.items():
        if value := getattr(memory, name):
            lines.append(f"  {title:32}{value / GIB:9.2f}")
    lines.append(f"  {'peak, closed form':32}{memory.peak / GIB:9.2f}")
    if plan.compiled is not None:
        lines.append(f"  {'arguments, compiled':32}{plan.compiled.arguments / GIB:9.2f}")
        lines.append(f"  {'peak, compiled':32}{plan.compiled.peak / GIB:9.2f}")
    share = limits.share(plan.topology.chip)
    lines.append(f"  {f'limit, {share:.0%} of the chip':32}{plan.limit / GIB:9.2f}")
    largest = (
        f"the largest micro-batch that does is {plan.largest} on a chip" if plan.largest else "no micro-batch does"
    )
    lines.append(f"{'IT FITS' if plan.fits else 'IT DOES NOT FIT'}; {largest}")
    if plan.remedy:
        lines.append(f"JAX takes {share:.0%} of a GPU's memory: {plan.remedy}")
    return "\n".join(lines)


def _work(plan: Plan) -> str:
    lines = [f"{'one step':28}{'TFLOP/image':>12}{'ideal s':>10}{'expected s':>12}  bound by   GB received"]
    for phase, each in zip(plan.phases, plan.times, strict=True):
        lines.append(
            f"  {phase.name:26}{phase.work.total / 1e12:12.2f}{each.ideal:10.3f}{each.expected:12.3f}  {each.bound:9}"
            f"{each.sent / 1e9:13.1f}"
        )
    rate = plan.experiment.batch_size / plan.expected
    lines.append(f"  {'all':26}{plan.flops / 1e12:12.2f}{plan.ideal:10.3f}{plan.expected:12.3f}  = {rate:.2f} images/s")
    assumed = plan.assumptions
    lines.append(
        f"Ideal: published speeds, no communication. Expected: the slowest of {assumed.compute:.0%} of arithmetic, "
        f"{assumed.memory:.0%} of memory bandwidth and {assumed.links:.0%} of links. Captions are as long as allowed."
    )
    if plan.uncounted:
        lines.append(f"Not counted: {plan.uncounted}.")
    return "\n".join(lines)


def _collectives(plan: Plan) -> str:
    if plan.compiled is None:
        return ""
    lines = [f"{'collectives':20}{'in program':>12}{'in loops':>10}{'largest MiB':>13}{'all MiB':>10}"]
    for each in plan.collectives:
        sizes = f"{each.largest / 2**20:13.1f}{each.total / 2**20:10.0f}"
        lines.append(f"  {each.kind:18}{each.count:12}{each.in_loops:10}{sizes}")
    return "\n".join(lines if plan.collectives else ["no collectives"])


def _notes(plan: Plan) -> str:
    lines = [f"WARNING: {warning}" for warning in plan.warnings]
    lines += [f"note: {name} is not there; taken for {what}" for name, what in plan.stand_ins.items()]
    return "\n".join(lines)
