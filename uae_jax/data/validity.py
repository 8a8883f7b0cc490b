"""What is wrong with records, by kind: which captions are usable, and a tally of all that was skipped or converted.

A bad record is never fatal by itself. Whoever reads one catches `BAD_RECORD`, puts its kind into a `Tally` and goes
on; `Tally.check` ends the run where too many are bad.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uae_jax.data.images import ImageError
from uae_jax.errors import RunError

MIN_RECORDS = 100  # read before the fraction of bad ones means anything


class RecordError(ValueError):
    """A record cannot be used; `kind` says why in one word, the message in one line."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class CaptionError(RecordError):
    """A caption cannot be used. Kinds: missing, blank, type, utf8, nul."""


class TooManyBadRecords(RunError):
    """More records were skipped than the settings allow; the message holds the whole table."""


# What reading, decoding or checking a bad record raises; all have a `kind`.
BAD_RECORD = (RecordError, ImageError)


def usable_caption(value: Any) -> str:
    """Checks one caption as a source stored it.

    Length is no fault: long captions are cut, and counted, where they become tokens. Text that spells special tokens
    is text.

    Args:
      value: str, or UTF-8 bytes.

    Returns:
      The text without surrounding white space.

    Raises:
      CaptionError: if it is missing, blank, no text, no UTF-8, or holds NUL.
    """
    if value is None:
        raise CaptionError("missing", "no caption")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CaptionError("utf8", f"caption is not UTF-8 (byte {error.start})") from None
    if not isinstance(value, str):
        raise CaptionError("type", f"caption is a {type(value).__name__}, wanted text")
    if "\0" in value:
        raise CaptionError("nul", f"caption holds NUL (character {value.index(chr(0))})")
    try:
        value.encode("utf-8")  # half of a surrogate pair, which stands for a byte that was no UTF-8, has no code
    except UnicodeEncodeError as error:
        raise CaptionError("utf8", f"caption is not UTF-8 (character {error.start})") from None
    value = value.removeprefix("\ufeff").strip()
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise CaptionError("blank", "caption is blank")
    return value


def alternatives(value: Any) -> Sequence:
    """The captions of one field: several as they are, one as a list of one; none of them checked.

    A sequence may write its captions when they are asked for, so only those that are needed should be.
    """
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim else [value.item()]
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


@dataclasses.dataclass
class Count:
    """How many, and the identities of the first of them, each once."""

    count: int = 0
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, ids: Iterable[str], count: int, keep: int) -> None:
        """Adds `count` more, of which some identities are known; at most `keep` are remembered."""
        self.count += count
        new = [str(id) for id in dict.fromkeys(ids) if str(id) not in self.first]
        self.first += new[: max(0, keep - len(self.first))]


class Tally:
    """Counts records: used, skipped by kind, converted by kind.

    A converted record is used too; one record may be converted in two ways.
    """

    def __init__(self, keep: int = 20):
        """Starts at zero; the identities of the first `keep` of each kind are remembered."""
        self.keep = keep
        self.used = 0
        self.skipped: dict[str, Count] = {}
        self.converted: dict[str, Count] = {}

    def use(self, id: str, conversions: Iterable[str] = ()) -> None:
        """Counts a record that is used, and what was converted in it."""
        self.used += 1
        for kind in conversions:
            self.convert(id, kind)

    def convert(self, id: str, kind: str) -> None:
        """Counts a conversion of a record (that `use` counts)."""
        self.converted.setdefault(kind, Count()).add([id], 1, self.keep)

    def skip(self, id: str, kind: str) -> bool:
        """Counts a record that is not used; True if that is news: its identity is remembered from now on."""
        count = self.skipped.setdefault(kind, Count())
        before = len(count.first)
        count.add([id], 1, self.keep)
        return len(count.first) > before

    @property
    def bad(self) -> int:
        """Records that were skipped."""
        return sum(count.count for count in self.skipped.values())

    @property
    def seen(self) -> int:
        """Records in all."""
        return self.used + self.bad

    @property
    def bad_fraction(self) -> float:
        """Share of the records that were skipped; 0 before the first."""
        return self.bad / self.seen if self.seen else 0.0

    def merge(self, other: "Tally") -> None:
        """Adds what another has counted; its identities come after this one's."""
        self.used += other.used
        for mine, others in ((self.skipped, other.skipped), (self.converted, other.converted)):
            for kind, count in others.items():
                mine.setdefault(kind, Count()).add(count.first, count.count, self.keep)

    def check(self, max_bad_fraction: float, min_records: int = MIN_RECORDS) -> None:
        """Ends a run whose data is no good.

        Args:
          max_bad_fraction: of the records seen so far that may be bad.
          min_records: so many must have been seen first.

        Raises:
          TooManyBadRecords: with the table.
        """
        if self.seen >= min_records and self.bad_fraction > max_bad_fraction:
            raise TooManyBadRecords(
                f"{self.bad} of {self.seen} records are bad ({self.bad_fraction:.1%}), wanted at most "
                f"{max_bad_fraction:.1%}; mend the data, or raise max_bad_fraction\n{self.table()}"
            )

    def table(self, examples: int = 3) -> str:
        """A line per kind: what happened, kind, count, and the first identities."""
        lines = []
        for what, counts in (("skipped", self.skipped), ("converted", self.converted)):
            for kind, count in sorted(counts.items(), key=lambda item: (-item[1].count, item[0])):
                names = ", ".join(self.named(count, examples))
                lines.append(f"{what:<10} {kind:<12} {count.count:>8}  {names}".rstrip())
        return "\n".join(lines)

    def named(self, count: Count, most: int) -> list[str]:
        """The first identities of a kind, and "..." where there are, or may be, others; one may count many times."""
        shown = count.first[:most]
        forgotten = len(count.first) >= self.keep and count.count > len(count.first)
        return [*shown, "..."] if forgotten or len(count.first) > len(shown) else shown

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it; `from_json` reads it back."""
        return {
            "used": self.used,
            "skipped": {kind: dataclasses.asdict(count) for kind, count in self.skipped.items()},
            "converted": {kind: dataclasses.asdict(count) for kind, count in self.converted.items()},
            "keep": self.keep,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Tally":
        """Reads what `to_json` made."""
        tally = cls(value["keep"])
        tally.used = value["used"]
        for name in ("skipped", "converted"):
            setattr(tally, name, {kind: Count(c["count"], list(c["first"])) for kind, c in value[name].items()})
        return tally
