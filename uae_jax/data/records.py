"""What a source yields and what a batch is made of."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """One item of a source, as stored: nothing is decoded or checked yet.

    Attributes:
      id: names the item in messages: a path, "shard.tar:000123", "scenes:17".
      image: whatever `open_image` takes: path, encoded bytes, PIL image, array; None where there is none.
      captions: field -> value, as stored; may hold anything at all.
      arrays: what was computed beforehand, by name (latents, embeddings).
    """

    id: str
    image: Any = None
    captions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Source(Protocol):
    """Random access to records. Picklable, so that worker processes can hold it; opens its files lazily."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def id(self, index: int) -> str:
        """Names a record that cannot be read, as `Record.id` would: by its line where it is one."""
        ...


@dataclasses.dataclass(frozen=True)
class Sample:
    """A record that is fit for training.

    Attributes:
      id: of the record.
      image: u8[H, W, 3] in the size of its bucket; None where only `arrays` are wanted.
      caption: the one drawn, valid text; None where the stage wants none.
      field: the caption field it was drawn from.
      arrays: of the record.
    """

    id: str
    image: np.ndarray | None = None
    caption: str | None = None
    field: str | None = None
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
