"""What crosses from the encoder to the decoder: caption -> hidden states -> projector -> conditioning.

Two interfaces. "text", the released one: the caption alone is read again under the role `generate`, so nothing but
text passes. "answer_hidden": the hidden states at the caption's own positions, with the image still in context, so
information can flow around the words; for the cold start and for ablation.

Letters: B prompts, G samples of each, R = B G rows, T prompt tokens, N answer tokens, D encoder width, E conditioning.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from uae_jax.models.projector import Projector
from uae_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from uae_jax.models.qwen2_5_vl.prompts import Prompts
from uae_jax.parallel.sharding import constrain

Array = jax.Array
Variables = dict[str, Any]


@flax.struct.dataclass
class Conditioning:
    """What the decoder is told.

    Attributes:
      context: [B, T, E].
      lengths: i32[B], how many positions the decoder sees; behind them it is as if there were none.
    """

    context: Array
    lengths: Array


def text_conditioning(
    encoder: Qwen2_5_VL,
    variables: Variables,
    projector: Projector,
    projector_params: Any,
    prompts: Prompts,
    lengths: Array | None = None,
) -> Conditioning:
    """Reads texts and projects every position's final hidden state: the "text" interface.

    The published pipeline pads a prompt and its negative to one length and masks padding from the encoder but not from
    the decoder. So padding sees the text before it, and its hidden states count, up to `lengths`; padding beyond, which
    only fills a bucket, does not.

    Args:
      encoder: the module.
      variables: {"params": ..., and maybe "lora": ...}; leave the adapter out for "base" conditioning.
      projector: the module.
      projector_params: its parameters.
      prompts: texts under the role `generate`.
      lengths: i32[B], positions that the decoder sees; None: each text's own.
    """
    hidden = text_hidden_states(encoder, variables, prompts)
    context = projector.apply({"params": projector_params}, hidden)
    return Conditioning(context, prompts.valid.astype(jnp.int32).sum(axis=1) if lengths is None else lengths)


def text_hidden_states(encoder: Qwen2_5_VL, variables: Variables, prompts: Prompts) -> Array:
    """The final hidden state at every position of the texts, padding included (it sees its text): [B, T, D]."""
    valid = prompts.valid.astype(jnp.int32)
    embeddings = encoder.apply(variables, prompts.tokens, method="embed")
    hidden, _ = encoder.apply(
        variables, embeddings, prompts.positions, (jnp.ones_like(valid), valid), method="hidden_states"
    )
    return hidden


def answer_conditioning(
    encoder: Qwen2_5_VL,
    variables: Variables,
    projector: Projector,
    projector_params: Any,
    prompts: Prompts,
    answers: Array,
    lengths: Array,
) -> Conditioning:
    """Projects the hidden states at the answers' positions, prompt and images in context: "answer_hidden".

    Args:
      encoder, variables, projector, projector_params: as `text_conditioning`.
      prompts: what was asked, B rows.
      answers: i32[R, N], what was answered; G = R / B rows for each prompt, side by side.
      lengths: i32[R], tokens of each answer.
    """
    hidden = answer_hidden_states(encoder, variables, prompts, answers, lengths)
    return Conditioning(projector.apply({"params": projector_params}, hidden), lengths)


def answer_hidden_states(
    encoder: Qwen2_5_VL, variables: Variables, prompts: Prompts, answers: Array, lengths: Array
) -> Array:
    """The final hidden state at each answer token, teacher-forced: [R, N, D]; arguments as `answer_conditioning`.

    State n has read the answer up to token n. (The logits of token n are those of the state before it.)
    """
    return hidden_with_answers(encoder, variables, prompts, answers, lengths)[1]


def hidden_with_answers(
    encoder: Qwen2_5_VL, variables: Variables, prompts: Prompts, answers: Array, lengths: Array
) -> tuple[Array, Array]:
    """The final hidden states at each prompt's last token, [R, 1, D], and at each answer token, [R, N, D].

    Arguments as `answer_conditioning`. An image is read once for all answers to its prompt.
    """
    features = None
    if prompts.images is not None:
        features = encoder.apply(variables, prompts.images, method="encode_images")
    asked = encoder.apply(variables, prompts.tokens, features, prompts.image_index, method="embed")
    group = answers.shape[0] // prompts.tokens.shape[0]
    steps = jnp.arange(answers.shape[1])
    told = encoder.apply(variables, answers, method="embed")
    following = jnp.repeat(prompts.next_position, group)[:, None] + steps
    valid = jnp.repeat(prompts.valid, group, axis=0)
    hidden, _ = encoder.apply(
        variables,
        jnp.concatenate([jnp.repeat(asked, group, axis=0), told], axis=1),
        jnp.concatenate(
            [jnp.repeat(prompts.positions, group, axis=1), jnp.broadcast_to(following, (3, *following.shape))], axis=2
        ),
        jnp.concatenate([valid, steps < lengths[:, None]], axis=1).astype(jnp.int32),
        method="hidden_states",
    )
    # Whole rows: of tokens split over devices, cut and joined again, XLA got gradients wrong (jax 0.10.2).
    hidden = constrain(hidden, "batch", None, None)
    length = prompts.tokens.shape[1]
    last = valid.astype(jnp.int32).sum(axis=1) - 1
    return jnp.take_along_axis(hidden[:, :length], last[:, None, None], axis=1), hidden[:, length:]
