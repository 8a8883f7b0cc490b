"""Where the time of a step goes: a profiler's trace of a few steps, and a table made of it.

workdir/profile/plugins/...   the trace, for TensorBoard with its profile plug-in, or ui.perfetto.dev
workdir/profile/parts.json    the table

An operation of the step is known by the path that tracing gave it, "jit(step)/loss/transpose(jvp(AutoencoderKL.decode))
/...", of which the table keeps three things: whether it is the rollout, the loss or the optimiser's; the model in which
it is; and whether it is on the way back.
"""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

FOLDER, TABLE = "profile", "parts.json"
PREPARE, LOSS, OPTIMISER = "prepare", "loss", "optimiser"  # scopes, see `uae_jax.training.update`
WARM = 3  # steps before: the first ones compile, and wait for data

_PHASES = {PREPARE: "rollout", LOSS: "loss", OPTIMISER: "optimiser"}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?\s([a-z][\w-]*)\(")
_PATH = re.compile(r'op_name="([^"]*)"')
_MODEL = re.compile(r"\b([A-Z]\w+)")
_WITHIN = ("while", "call", "conditional")  # what they take is counted in what they call
_OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Part:
    """What is timed as one.

    Attributes:
      phase: "rollout", "loss", "optimiser" or "other".
      model: class of the module that the operations are in, e.g. "SD3Transformer"; "other" outside of all.
      backward: whether they belong to the gradient, recomputation included.
    """

    phase: str
    model: str
    backward: bool

    @classmethod
    def of(cls, path: str) -> "Part":
        """The part of an operation, by its path."""
        steps = path.split("/")
        phase = next((_PHASES[step] for step in steps if step in _PHASES), _OTHER)
        inside = path.partition(")/")[2]  # behind "jit(step)"
        model = _MODEL.search(inside)
        return cls(phase, model.group(1) if model else _OTHER, "transpose(" in path)


class Profiler:
    """Traces `steps` steps of a run from its fourth on; the host waits for the device before and after them.

    Args:
      workdir: of the run, local.
      start: the run's last step before this start.
      steps: how many; 0 for none.
    """

    def __init__(self, workdir: Path, start: int, steps: int):
        self._folder = workdir / FOLDER
        self._first, self._last = start + WARM + 1, start + WARM + steps
        self._on = False

    def before(self, number: int, state: object) -> None:
        """To be called before step `number`, with what it works on."""
        if self._first <= self._last and number == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, number: int, state: object) -> str | None:
        """To be called with a step's result; the table in words, once the last step to be traced is done."""
        if not self._on or number < self._last:
            return None
        jax.block_until_ready(state)
        self.close()
        trace = max(self._folder.glob("plugins/profile/*/*.xplane.pb"))
        seconds = {part: total / (self._last - self._first + 1) for part, total in parts(trace, _programs()).items()}
        rows = [{**dataclasses.asdict(part), "seconds_per_step": value} for part, value in _sorted(seconds)]
        (self._folder / TABLE).write_text(json.dumps(rows, indent=2) + "\n")
        return f"profile of steps {self._first} to {self._last}, {self._folder}\n{table(seconds)}"

    def close(self) -> None:
        """Ends a trace under way."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def parts(trace: Path, programs: Iterable[str]) -> dict[Part, float]:
    """Seconds by part that devices were busy in a trace; operations at the same time on several threads all count.

    Args:
      trace: "*.xplane.pb" of JAX's profiler.
      programs: HLO texts of what ran, see `_programs`.
    """
    known = {(module, name): (kind, path) for text in programs for module, name, kind, path in _instructions(text)}
    seconds: dict[Part, float] = defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                about = dict(event.stats)
                kind, path = known.get((about.get("hlo_module"), about.get("hlo_op")), ("", None))
                if path is not None and kind not in _WITHIN:
                    seconds[Part.of(path)] += event.duration_ns / 1e9
    return dict(seconds)


def table(seconds: dict[Part, float]) -> str:
    """One line for each part, the longest first."""
    whole = sum(seconds.values())
    if not whole:
        return "no operation of a step was recognised; look at the trace itself"
    lines = [f"{'phase':<10} {'model':<20} {'way':<9} {'s/step':>8} {'share':>6}"]
    for part, value in _sorted(seconds):
        way = "backward" if part.backward else "forward"
        lines.append(f"{part.phase:<10} {part.model:<20} {way:<9} {value:>8.3f} {value / whole:>6.1%}")
    return "\n".join(lines)


def _sorted(seconds: dict[Part, float]) -> list[tuple[Part, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def _programs() -> Iterator[str]:
    """HLO texts of all programs that are loaded."""
    for executable in jax.local_devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            yield module.to_string()


def _instructions(text: str) -> Iterator[tuple[str, str, str, str]]:
    """(program, name, operation, path) of every instruction of an HLO text; the path is "" where none is known."""
    program = re.match(r"HloModule ([\w.-]+)", text)
    for line in text.splitlines():
        found = _INSTRUCTION.match(line) if " = " in line else None
        if program and found:
            path = _PATH.search(line, found.end())
            yield program.group(1), found.group(1), found.group(2), path.group(1) if path else ""
