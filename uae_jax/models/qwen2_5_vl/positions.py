"""Where everything is: patches in images and windows, image tokens in prompts, tokens in M-RoPE's three axes.

All of it depends on image sizes only, so it is planned on the host in NumPy and reaches the compiled model as arrays
of fixed shape.

Letters: B rows of the batch (prompts), P patches of a row, M merged tokens of a row, W windows of a row, S patches of
a full window, T tokens, N heads, H head width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from uae_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, VisionConfig

Array = jax.Array
Grid = tuple[int, int, int]  # (time, height, width) of one image, in patches
Grids = Sequence[Sequence[Grid]]  # the images of each row

PAD_POSITIONS = ("ones", "zeros", "running")


class ImagePlan(NamedTuple):
    """The integer arrays of `ImagePatches`."""

    position: np.ndarray
    segment: np.ndarray
    window: np.ndarray
    slot: np.ndarray


@flax.struct.dataclass
class ImagePatches:
    """The images of each prompt, one after another.

    Attributes:
      patches: f[B, P, C*t*p*p] flattened in the processor's order: merge blocks row by row, in a block its patches
        row by row, in a patch (channel, time, row, column). Zero behind the last image.
      position: i32[B, P, 2] row and column of each patch in its image.
      segment: i32[B, P] number of the image in the row, from 1; 0 is padding.
      window: i32[B, W, S] the patches of each attention window, as indices into P; -1 where it is not full.
      slot: i32[B, P] where each patch stands in the flattened windows; 0 for padding.
    """

    patches: Array
    position: Array
    segment: Array
    window: Array
    slot: Array


def plan_images(
    grids: Grids, config: VisionConfig, *, pad_patches: int | None = None, pad_windows: int | None = None
) -> ImagePlan:
    """Plans where the patches of each row's images go.

    Args:
      grids: per row, the (1, height, width) in patches of each image; a row may have none.
      config: merge and window sizes.
      pad_patches: P, a multiple of the patches of a token; None is what the fullest row needs.
      pad_windows: W; None is what the fullest row needs.

    Raises:
      ValueError: on video, on sides that do not merge, and when a row does not fit.
    """
    rows = [_plan_row(number, row, config) for number, row in enumerate(grids)]
    unit = config.patches_per_token
    length = _padded("patches", [len(segment) for _, segment, _ in rows], pad_patches, unit)
    windows = _padded("windows", [len(ranks) for _, _, ranks in rows], pad_windows, 1)
    if length % unit:
        raise ValueError(f"pad_patches is {length}, wanted a multiple of {unit}, the patches of one token")
    size = config.window_patches
    plan = ImagePlan(
        position=np.zeros((len(rows), length, 2), np.int32),
        segment=np.zeros((len(rows), length), np.int32),
        window=np.full((len(rows), windows, size), -1, np.int32),
        slot=np.zeros((len(rows), length), np.int32),
    )
    for b, (position, segment, members) in enumerate(rows):
        count = len(segment)
        plan.position[b, :count] = position
        plan.segment[b, :count] = segment
        for w, patches in enumerate(members):
            plan.window[b, w, : len(patches)] = patches
            plan.slot[b, patches] = w * size + np.arange(len(patches))
    return plan


def pack_images(
    pixels: Sequence[np.ndarray],
    grids: Grids,
    config: VisionConfig,
    *,
    pad_patches: int | None = None,
    pad_windows: int | None = None,
) -> ImagePatches:
    """Packs processed images for the model.

    Args:
      pixels: per row, f32[patches, C*t*p*p] of all its images in order (the processor's `pixel_values`).
      grids, config, pad_patches, pad_windows: see `plan_images`.

    Raises:
      ValueError: as `plan_images`, and when a row's pixels do not fit its grids.
    """
    plan = plan_images(grids, config, pad_patches=pad_patches, pad_windows=pad_windows)
    patches = np.zeros((*plan.segment.shape, config.patch_width), np.float32)
    for b, (row, images) in enumerate(zip(pixels, grids, strict=True)):
        wanted = (sum(h * w for _, h, w in images), config.patch_width)
        got = np.shape(row)
        if got != wanted:
            raise ValueError(f"row {b}: patches are {got}, wanted {wanted} for grids {[tuple(g) for g in images]}")
        patches[b, : got[0]] = row
    return ImagePatches(patches, *plan)


def image_index(tokens: np.ndarray, grids: Grids, config: Qwen2_5_VLConfig) -> np.ndarray:
    """Says which merged token belongs at each placeholder.

    Args:
      tokens: i32[B, T].
      grids: the images of each row.
      config: placeholder id and merge size.

    Returns:
      i32[B, T] index into the row's merged tokens; -1 where there is text.

    Raises:
      ValueError: if a row has more or fewer placeholders than merged tokens, or placeholders of a video.
    """
    tokens = np.asarray(tokens)
    _check_rows(tokens, grids)
    placeholder = tokens == config.image_token_id
    for b, images in enumerate(grids):
        wanted = sum(_merged_count(grid, config.vision) for grid in images)
        got = int(placeholder[b].sum())
        if got != wanted:
            raise ValueError(
                f"row {b}: {got} image placeholders, wanted {wanted} for its {len(images)} images of grids "
                f"{[tuple(g) for g in images]}"
            )
        if (tokens[b] == config.video_token_id).any():
            raise ValueError(f"row {b}: video placeholders; only still images are supported")
    return np.where(placeholder, np.cumsum(placeholder, axis=1) - 1, -1).astype(np.int32)


def mrope_positions(
    tokens: np.ndarray,
    grids: Grids,
    valid: np.ndarray,
    config: Qwen2_5_VLConfig,
    *,
    pad_positions: str = "ones",
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers tokens in time, row and column, as transformers' `get_rope_index` does.

    Text counts up in all three; the tokens of an image share one time and have their row and column; what follows
    continues behind the largest number so far.

    Args:
      tokens: i32[B, T].
      grids: the images of each row.
      valid: bool[B, T], False at padding, on either side.
      config: placeholder id and merge size.
      pad_positions: numbers of padding. "ones", as transformers 4.50; "zeros", as transformers 5 in batches with
        images; "running", as transformers 5 in batches without: on behind the row's last token, and down from -1
        before its first (transformers counts the whole row up from 0; attention sees differences only). It matters
        to whoever reads hidden states at padding.

    Returns:
      i32[3, B, T], and i32[B], the number that the next token of each row gets. ("Rope delta" is that less the
      row's count of valid tokens.)

    Raises:
      ValueError: on video, or where placeholders and grids do not fit.
    """
    if pad_positions not in PAD_POSITIONS:
        raise ValueError(f"pad_positions is {pad_positions!r}, wanted one of {', '.join(PAD_POSITIONS)}")
    image_index(tokens, grids, config)
    tokens, valid = np.asarray(tokens), np.asarray(valid, bool)
    if valid.shape != tokens.shape:
        raise ValueError(f"valid is {valid.shape}, wanted the shape of tokens {tokens.shape}")
    result = np.full((3, *tokens.shape), int(pad_positions == "ones"), np.int32)
    following = np.zeros(len(tokens), np.int32)
    for b, images in enumerate(grids):
        place = np.flatnonzero(valid[b])
        numbers = _number_row(b, tokens[b, place], images, config)
        following[b] = numbers.max(initial=-1) + 1
        if pad_positions == "running":
            first, last = (place[0], place[-1]) if len(place) else (0, -1)
            every = np.arange(tokens.shape[1])
            result[:, b] = np.where(every < first, every - first, following[b] + every - last - 1)
        result[:, b, place] = numbers
    return result, following


def rotary_frequencies(width: int, theta: float) -> np.ndarray:
    """f32[width / 2]: radians per position of each pair of numbers."""
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return (1.0 / np.float32(theta) ** exponent).astype(np.float32)


def _plan_row(
    number: int, images: Sequence[Grid], config: VisionConfig
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Positions and segments of a row's patches, and the patches of each of its windows."""
    positions, segments, members, start = [np.zeros((0, 2), np.int32)], [np.zeros(0, np.int32)], [], 0
    for segment, (time, height, width) in enumerate(images, start=1):
        merge = config.merge_size
        if time != 1:
            raise ValueError(f"row {number}, image {segment}: {time} frames; only still images are supported")
        if height < 1 or width < 1 or height % merge or width % merge:
            raise ValueError(f"row {number}, image {segment}: {height}x{width} patches, wanted multiples of {merge}")
        position = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
        blocks = position.reshape(height // merge, merge, width // merge, merge, 2).swapaxes(1, 2)
        positions.append(blocks.reshape(-1, 2))
        segments.append(np.full(height * width, segment))
        row, column = (positions[-1] // (merge * config.window_side)).T
        across = -(-(width // merge) // config.window_side)
        window = row * across + column
        order = np.argsort(window, kind="stable") + start
        members += np.split(order, np.cumsum(np.bincount(window))[:-1])
        start += height * width
    return np.concatenate(positions), np.concatenate(segments), members


def _padded(what: str, counts: list[int], wanted: int | None, least: int) -> int:
    needed = max([least, *counts])
    if wanted is None:
        return needed
    if wanted < needed:
        raise ValueError(f"row {int(np.argmax(counts))} has {needed} {what}, but pad_{what} is {wanted}")
    return wanted


def _check_rows(tokens: np.ndarray, grids: Grids) -> None:
    if tokens.ndim != 2 or len(tokens) != len(grids):
        raise ValueError(f"tokens are {tokens.shape}, grids are of {len(grids)} rows; wanted [B, T] and B")


def _merged_count(grid: Grid, config: VisionConfig) -> int:
    time, height, width = grid
    if time != 1:
        raise ValueError(f"image of {time} frames; only still images are supported")
    return (height // config.merge_size) * (width // config.merge_size)


def _number_row(row: int, tokens: np.ndarray, images: Sequence[Grid], config: Qwen2_5_VLConfig) -> np.ndarray:
    """Numbers the tokens of one row without its padding: i32[3, tokens]."""
    parts, place, following = [np.zeros((3, 0), np.int32)], 0, 0
    for _, height, width in images:
        rows, columns = height // config.vision.merge_size, width // config.vision.merge_size
        begin = place + int(np.argmax(tokens[place:] == config.image_token_id))
        text, count = begin - place, rows * columns
        if not (tokens[begin : begin + count] == config.image_token_id).all() or begin + count > len(tokens):
            raise ValueError(f"row {row}: wanted {count} image placeholders side by side from valid token {begin}")
        parts.append(np.broadcast_to(following + np.arange(text), (3, text)))
        following += text
        parts.append(following + np.indices((1, rows, columns)).reshape(3, count))
        following += max(rows, columns)
        place = begin + count
    rest = len(tokens) - place
    parts.append(np.broadcast_to(following + np.arange(rest), (3, rest)))
    return np.concatenate(parts, axis=1)
