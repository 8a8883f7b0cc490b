"""How the mesh axes `tensor` and `sequence` share what is done for one sample, and what they send for it.

As the models and `uae_jax.parallel.sharding.DEFAULT_RULES` lay it out, where T and S are the sizes of these axes:

- Products with weights are cut by `tensor`, into heads and hidden widths, and by `sequence`, into tokens; tokens that S
  does not divide stay whole. What goes from layer to layer, [tokens, width], is cut by `sequence` alone.
- Attention is cut by `tensor` where T divides the heads of keys, and by `sequence` into queries, whose keys and values
  are gathered (see `uae_jax.models.attention`); but not the causal one of language models, whose late queries see more.
  Where it is not cut, queries are gathered, too, and every chip of the group does the same work.

What `tensor` sends was read off programs that XLA compiled of small SD3 models for eight CPU devices, in every layer;
what `sequence` sends follows from the layout:

- `tensor`: sums of [tokens, width] after attention and after the MLP; on the way back one of the MLP's (of a gated one,
  two) and three of queries, keys and values.
- Keys and values are gathered over all chips that have others, and their gradients summed over them. So are queries
  where they are not cut; then the gradient of the result is gathered, too.

Left out: the sends that put text behind patches in equal parts, which are no larger than a part of q, k and v; the sums
of what is sent for modulation; second attentions; and towers that are no `Stack`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel.sharding import partition_spec

_SHARED = ("tensor", "sequence")


@dataclasses.dataclass(frozen=True)
class Stack:
    """What passes a tower's layers, for one image of the batch.

    Attributes:
      tower: "encoder" or "decoder".
      width, layers: of the tower.
      heads, kv_heads, head_width: of its attention.
      sums: over `tensor` on the way back through a layer, of [tokens, width].
      causal: whether tokens see those before them alone.
      lengths: of the streams of tokens, which are cut each for itself.
      forward, backward: how often all layers are passed.
    """

    tower: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    sums: int
    causal: bool
    lengths: tuple[int, ...]
    forward: float
    backward: float = 0.0


def decoder(config: SD3Config, lengths: tuple[int, ...], forward: float, backward: float = 0.0) -> Stack:
    """Of the MMDiT: patches, then text."""
    heads = config.num_heads
    width, layers = config.width, config.num_layers
    return Stack("decoder", width, layers, heads, heads, config.head_dim, 4, False, lengths, forward, backward)


def encoder(text: Any, length: int, forward: float, backward: float = 0.0) -> Stack:
    """Of the language model, whose MLP is gated."""
    sizes = (text.width, text.depth, text.heads, text.kv_heads, text.head_width)
    return Stack("encoder", *sizes, 5, True, (length,), forward, backward)


@dataclasses.dataclass(frozen=True)
class Split:
    """A stack on a mesh.

    Attributes:
      tokens: the part of them that a chip has.
      tensor: parts of hidden widths.
      heads, queries: parts of attention; the rest of the chips that share a sample repeat it.
      gathered_keys, gathered_queries: chips that keys and values, and queries, are gathered over.
    """

    tokens: float
    tensor: int
    heads: int
    queries: int
    gathered_keys: int
    gathered_queries: int

    @property
    def linear(self) -> float:
        """The part of a sample's products with weights that a chip does."""
        return self.tokens / self.tensor

    @property
    def attention(self) -> float:
        """The part of a sample's attention that a chip does."""
        return 1 / (self.heads * self.queries)

    @property
    def held(self) -> float:
        """The part that a chip has of what attention is given and gives: keys and values, queries and results."""
        return (1 + 1 / self.queries) / 2 / self.heads


def split(stack: Stack, mesh: Mapping[str, int]) -> Split:
    """Lays a stack out on a mesh, of which sizes of axes are given."""
    parts, tensor = mesh["sequence"], mesh["tensor"]
    cut = [length for length in stack.lengths if length % parts == 0]
    tokens = 1 - sum(cut) / sum(stack.lengths) * (1 - 1 / parts)
    tensor = tensor if stack.width % tensor == 0 else 1
    heads = tensor if stack.kv_heads % tensor == 0 else 1
    queries = 1 if stack.causal else parts
    apart, among = tensor // heads, parts if cut else 1
    return Split(tokens, tensor, heads, queries, apart * among, apart * (among if queries == 1 else 1))


def sent(stack: Stack, mesh: Mapping[str, int], itemsize: int) -> float:
    """Bytes that a chip receives for one sample over `tensor` and `sequence`."""
    laid = split(stack, mesh)
    length = sum(stack.lengths)
    # A sum sends twice what a gathering does: parts are scattered to be added up, and gathered.
    summed = 2 * (laid.tensor - 1) / laid.tensor * length * laid.tokens * stack.width
    a_head = length * stack.head_width / laid.heads
    keys = 2 * stack.kv_heads * a_head * (laid.gathered_keys - 1) / laid.gathered_keys
    queries = stack.heads * a_head / laid.queries * (laid.gathered_queries - 1) / laid.gathered_queries
    forward = 2 * summed + keys + queries
    backward = stack.sums * summed + 2 * keys + 3 * queries
    return stack.layers * itemsize * (stack.forward * forward + stack.backward * backward)


def image_parts(images: int, mesh: Any) -> int:
    """Chips of those that share one place of the batch that have images of their own: convolutions are split so."""
    taken, parts = partition_spec((images,), ("images",), mesh)[0] or (), 1
    for axis in taken:
        parts *= mesh.shape[axis] if axis in _SHARED else 1
    return parts


def repeated(stack: Stack, mesh: Mapping[str, int]) -> str:
    """Says where attention is not cut by an axis, and how often its work is done then; "" where all is cut."""
    laid, found = split(stack, mesh), []
    if mesh["tensor"] > laid.heads:
        kind = "heads" if stack.heads == stack.kv_heads else "heads of keys"
        found.append(f"mesh.tensor={mesh['tensor']} does not divide its {stack.kv_heads} {kind}")
    if mesh["sequence"] > 1 and stack.causal:
        found.append("mesh.sequence does not cut a causal attention")
    if not found:
        return ""
    times = mesh["tensor"] * mesh["sequence"] // (laid.heads * laid.queries)
    return f"attention of the {stack.tower} is repeated on {times} chips: {' and '.join(found)}"


def whole(stack: Stack, mesh: Mapping[str, int]) -> str:
    """Says which lengths `sequence` does not divide, so that all chips of it do the same; "" where it does."""
    if mesh["sequence"] > 1 and stack.lengths == (1,):
        return "texts are written a token at a time, which mesh.sequence does not share"
    odd = [str(length) for length in stack.lengths if length % mesh["sequence"]]
    if not odd:
        return ""
    return f"mesh.sequence={mesh['sequence']} does not divide {' and '.join(odd)} tokens of the {stack.tower}"
