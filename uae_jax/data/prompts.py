"""Prompts for the encoder: chat template, tokens, image placement, padded to a few shapes.

Everything here runs on the host and needs no PyTorch. Text from users never becomes a special token: where it spells
one out, it is tokenised apart, character by character if need be.
"""

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uae_jax.data.tokenizers import load_tokenizer
from uae_jax.data.vision_inputs import VisionInputConfig, config_from_json, image_patches
from uae_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from uae_jax.models.qwen2_5_vl.positions import image_index, mrope_positions, pack_images
from uae_jax.models.qwen2_5_vl.prompts import Prompts

IMAGE_TOKEN = "<|image_pad|>"
_HOLE = "\ue000"  # a private-use character that stands for the user's text while the template is filled in

CAPTION_QUESTION = (
    "You are an expert at describing pictures. Write one complete description of this image from which somebody who "
    "has never seen it could paint it: every object with its colour, shape, size, material and place, how the objects "
    "stand to one another, the background, the light, the style. Give any text in the image word for word in double "
    "quotes."
)


def bucket(count: int, least: int) -> int:
    """Rounds up to least * 2^k or least * 3 * 2^(k-1), so that a few shapes serve all sizes with at most 1/3 waste."""
    size = least
    while size < count:
        if size * 3 // 2 >= count and size * 3 % 2 == 0:
            return size * 3 // 2
        size *= 2
    return size


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The smallest shapes that batches are padded to; `bucket` says what lies above."""

    tokens: int = 64
    patches: int = 256


def check_tokenizer(folder: Path, names: Collection[str]) -> None:
    """Raises `ValueError` where a folder of files of these names has no tokenizer; says where to get one."""
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise ValueError(
            f"{folder}: no tokenizer.json in it (nor vocab.json with merges.txt); give the base model as processor "
            f"(--processor), e.g. Qwen/Qwen2.5-VL-3B-Instruct"
        )


class PromptBuilder:
    """Turns questions about images, and texts to paint, into `Prompts`."""

    def __init__(
        self,
        tokenizer,
        config: Qwen2_5_VLConfig,
        vision_inputs: VisionInputConfig = VisionInputConfig(),
        buckets: Buckets = Buckets(),
        pad_positions: str = "ones",
        ends: Sequence[int] = (),
    ):
        """Keeps what it is given.

        Args:
          tokenizer: a fast transformers tokenizer with a chat template.
          config: of the encoder.
          vision_inputs: how images are resized and cut.
          buckets: the smallest shapes.
          pad_positions: what padding that the decoder sees is numbered, see `mrope_positions`; "ones" is what the
            published code did with the transformers of its day.
          ends: tokens that end an answer, beside the encoder's and the tokenizer's.

        Raises:
          ValueError: if the tokenizer has no chat template, or does not know the encoder's image token.
        """
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; put chat_template.jinja into its folder")
        got = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if got != config.image_token_id:
            raise ValueError(f"the tokenizer has {IMAGE_TOKEN} at {got}, wanted {config.image_token_id} as the encoder")
        self.tokenizer = tokenizer
        self.config = config
        self.vision_inputs = vision_inputs
        self.buckets = buckets
        self.pad_positions = pad_positions
        self.ends = tuple(ends)

    @classmethod
    def from_folder(
        cls, folder: Path, config: Qwen2_5_VLConfig, max_pixels: int | None = None, **settings
    ) -> "PromptBuilder":
        """Loads tokenizer, chat template and image settings from a published folder.

        Args:
          folder: with `tokenizer.json`; if it differs from the default, `preprocessor_config.json`; and where more than
            one token ends an answer, `generation_config.json`.
          config: of the encoder.
          max_pixels: replaces the published limit of an image's area; UAE uses 65536.
          **settings: of `PromptBuilder`.

        Raises:
          ValueError: if there is no tokenizer in the folder; says where to get one.
        """
        check_tokenizer(folder, [file.name for file in folder.iterdir()])
        tokenizer = load_tokenizer(folder)
        if not tokenizer.chat_template and (folder / "chat_template.json").is_file():  # where older folders keep it
            tokenizer.chat_template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
        inputs = VisionInputConfig()
        if (folder / "preprocessor_config.json").is_file():
            inputs = config_from_json(json.loads((folder / "preprocessor_config.json").read_text()))
        if max_pixels is not None:
            inputs = dataclasses.replace(inputs, max_pixels=max_pixels)
        ends = ()
        if (folder / "generation_config.json").is_file():
            ends = _several(json.loads((folder / "generation_config.json").read_text()).get("eos_token_id"))
        return cls(tokenizer, config, inputs, ends=ends, **settings)

    def encode_user(self, text: str, role: str = "user", images: int = 0) -> list[int]:
        """The tokens of one message and the header of its answer; images stand behind the text, one token each.

        Args:
          text: the user's; special tokens in it are plain text.
          role: "user", or "generate" for a text that is to be painted.
          images: how many.
        """
        content = [{"type": "text", "text": _HOLE}, *({"type": "image"} for _ in range(images))]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": role, "content": content}], tokenize=False, add_generation_prompt=True
        )
        head, tail = rendered.split(_HOLE)
        if not self._spells_special(text):
            return self._tokenise(head + text + tail)
        return self._tokenise(head) + self.encode_text(text) + self._tokenise(tail)

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text by itself, as an answer has them; special tokens in it are plain text."""
        return self._tokenise(text, split_special_tokens=True) if self._spells_special(text) else self._tokenise(text)

    def _spells_special(self, text: str) -> bool:
        return any(token in text for token in [*self.tokenizer.all_special_tokens, IMAGE_TOKEN])

    def _tokenise(self, text: str, **kwargs) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **kwargs)["input_ids"] if text else []

    def ask(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> Prompts:
        """Builds one prompt per row: a question and its images, RGB."""
        prepared = [[image_patches(image, self.vision_inputs) for image in row] for row in images]
        rows = []
        for row, question in zip(prepared, questions, strict=True):
            counts = iter([h * w // self.config.vision.patches_per_token for _, (_, h, w) in row])
            tokens = self.encode_user(question, images=len(row))
            placeholder = self.config.image_token_id
            rows.append([t for token in tokens for t in [token] * (next(counts) if token == placeholder else 1)])
        patches = [np.concatenate([p for p, _ in row]) if row else self._no_patches() for row in prepared]
        return self.pack(rows, patches, [[grid for _, grid in row] for row in prepared])

    def paint(self, texts: Sequence[str]) -> Prompts:
        """Builds one prompt per text that is to be painted: the role `generate` and the header of an answer."""
        return self.pack([self.encode_user(text, role="generate") for text in texts])

    def pack(
        self,
        rows: Sequence[Sequence[int]],
        patches: Sequence[np.ndarray] | None = None,
        grids: Sequence[Sequence[tuple[int, int, int]]] | None = None,
    ) -> Prompts:
        """Pads rows of tokens, and their images if there are any, to a bucket.

        Args:
          rows: token numbers.
          patches: per row, f32[patches, width].
          grids: per row, the (1, h, w) of each image.
        """
        grids = [[] for _ in rows] if grids is None else grids
        length = bucket(max(map(len, rows)), self.buckets.tokens)
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        valid = np.zeros((len(rows), length), bool)
        for b, row in enumerate(rows):
            tokens[b, : len(row)] = row
            valid[b, : len(row)] = True
        positions, following = mrope_positions(tokens, grids, valid, self.config, pad_positions=self.pad_positions)
        if not any(grids):
            return Prompts(tokens, valid, positions, following)
        vision = self.config.vision
        count = bucket(max(sum(h * w for _, h, w in row) for row in grids), self.buckets.patches)
        side = vision.window_side * vision.merge_size
        needed = max(sum(-(-h // side) * -(-w // side) for _, h, w in row) for row in grids)
        usual = 2 * count // vision.window_patches + 8  # so that images of one bucket rarely differ in windows
        windows = usual if needed <= usual else bucket(needed, usual)
        images = pack_images(patches, grids, vision, pad_patches=count, pad_windows=windows)
        return Prompts(tokens, valid, positions, following, images, image_index(tokens, grids, self.config))

    def _no_patches(self) -> np.ndarray:
        return np.zeros((0, self.config.vision.patch_width), np.float32)

    @property
    def pad_id(self) -> int:
        """The token of padding: the tokenizer's, else the encoder's, else its end of sequence."""
        for candidate in (self.tokenizer.pad_token_id, self.config.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return candidate
        return 0

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        own = _several(self.config.eos_token_id), _several(self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys([*own[0], *own[1], *self.ends]))

    @property
    def answer_ids(self) -> np.ndarray:
        """bool[V]: what an answer is made of: tokens of text, and those that end it. The others `decode` leaves out."""
        allowed = np.arange(self.config.text.vocab) < len(self.tokenizer)
        allowed[[i for i in self.tokenizer.all_special_ids if i < len(allowed)]] = False
        allowed[list(self.stop_ids)] = True
        return allowed

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer, special tokens left out."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _several(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
