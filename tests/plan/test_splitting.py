"""What the axes tensor and sequence do to one sample: by hand, and as compiled programs were seen to."""

import pytest

from uae_jax.models.qwen2_5_vl import config as qwen
from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel.mesh import AXES, abstract_mesh
from uae_jax.plan import memory, splitting

WIDE = SD3Config(num_layers=1, num_heads=4)  # four heads of 64
LARGE = SD3Config.sd35_large()


def mesh(**sizes):
    return dict.fromkeys(AXES, 1) | sizes


def sent(config, **sizes):
    """Numbers that a chip receives per token, in widths, (forward, on the way back), for 256 patches and 128 tokens."""
    passes = [(1, 0), (0, 1)]
    found = [splitting.sent(splitting.decoder(config, (256, 128), *each), mesh(**sizes), 1) for each in passes]
    return [each / (384 * config.width) for each in found]


def test_nothing_is_shared_by_data_and_fsdp():
    stack = splitting.decoder(LARGE, (4096, 512), 1, 1)
    laid = splitting.split(stack, mesh(data=4, fsdp=8))
    assert (laid.linear, laid.attention) == (1, 1) and splitting.sent(stack, mesh(data=4, fsdp=8), 2) == 0


def test_what_compiled_programs_send():
    """Of three layers of four heads, compiled for fsdp 2 and an axis of 4, in the loop over layers, per layer.

    Results of the program, in widths of all tokens: `tensor` 2 all-reduces, and 4 on the way back. By `sequence` keys
    and values are gathered, and their gradients summed. A chip receives 3/4 of what is gathered, and twice that of what
    is summed.
    """
    assert sent(WIDE, fsdp=2, tensor=4) == pytest.approx([2 * 1.5, 4 * 1.5])
    assert sent(WIDE, fsdp=2, sequence=4) == pytest.approx([2 * 0.75, 2 * 1.5])
    # Six heads by 4: the sums; q, k, v and the gradient of the result gathered, for each chip has all heads.
    six = SD3Config(num_layers=1, num_heads=6)
    assert sent(six, tensor=4) == pytest.approx([2 * 1.5 + 3 * 0.75, 4 * 1.5 + 0.75 + 3 * 1.5])


def test_work_of_the_whole_decoder():
    """38 heads: two halves by tensor=2, but tensor=4 leaves them whole, and four chips do the same attention."""
    stack = splitting.decoder(LARGE, (4096, 512), 1)
    two, four = (splitting.split(stack, mesh(tensor=size)) for size in (2, 4))
    assert (two.linear, two.attention, four.linear, four.attention) == (1 / 2, 1 / 2, 1 / 4, 1)
    assert splitting.repeated(stack, mesh(tensor=2)) == ""
    said = splitting.repeated(stack, mesh(tensor=4))
    assert said == "attention of the decoder is repeated on 4 chips: mesh.tensor=4 does not divide its 38 heads"
    assert splitting.repeated(stack, mesh(tensor=2, sequence=4)) == ""
    cut = splitting.split(stack, mesh(tensor=2, sequence=4))
    assert (cut.linear, cut.attention) == (1 / 8, 1 / 8)
    said = splitting.repeated(splitting.encoder(qwen.qwen2_5_vl_3b().text, 512, 1), mesh(tensor=2, sequence=4))
    assert said == "attention of the encoder is repeated on 4 chips: mesh.sequence does not cut a causal attention"


def test_tokens_that_do_not_divide_stay_whole():
    # 4096 patches in four parts, 510 tokens of text whole: 1024 and 510 of 4606.
    stack = splitting.decoder(LARGE, (4096, 510), 1)
    assert splitting.split(stack, mesh(sequence=4)).tokens == pytest.approx((1024 + 510) / 4606)
    assert splitting.whole(stack, mesh(sequence=4)) == "mesh.sequence=4 does not divide 510 tokens of the decoder"
    assert splitting.whole(stack, mesh(sequence=2)) == ""


def test_decoding_is_shared_by_heads_alone():
    """One token at a time: no parts by sequence. The language model has two heads of keys."""
    text = qwen.qwen2_5_vl_3b().text
    stack = splitting.encoder(text, 1, 1)
    assert splitting.split(stack, mesh(sequence=4)).linear == 1
    assert splitting.sent(stack, mesh(sequence=4), 2) == 0
    assert "a token at a time" in splitting.whole(stack, mesh(sequence=4))
    assert splitting.split(stack, mesh(tensor=2)).attention == 1 / 2
    assert "does not divide its 2 heads of keys" in splitting.repeated(stack, mesh(tensor=4))


def test_activations_of_a_chip():
    """What goes from layer to layer is kept by remat: a quarter by sequence=4, all of it by tensor=4."""

    def kept(remat, **sizes):
        cut = splitting.split(splitting.decoder(WIDE, (256, 128), 1), mesh(**sizes))
        two, one = (memory.transformer(1, 1, layers, remat, 1, cut) for layers in (2, 1))
        return two - one

    assert kept("full", fsdp=8) == memory.KEPT["full"] == kept("full", tensor=4)
    assert kept("full", sequence=4) == memory.KEPT["full"] / 4
    # Without remat: what is attention's by heads, hidden widths by tensor; by sequence all but keys and values.
    # Compiled for eight CPU devices: 0.34 and 0.32 of what fsdp alone keeps, 11.82 and 10.98 of 34.32 widths.
    assert kept("none", tensor=4) == 22 - 18 + 18 / 4 == pytest.approx(0.34 * 22, rel=0.15)
    assert kept("none", sequence=4) == (22 - 2) / 4 + 2 == pytest.approx(0.32 * 22, rel=0.01)


def test_images_of_the_vae_are_split_over_all_axes():
    wide = abstract_mesh(8, data=2, tensor=2, sequence=2)
    assert [splitting.image_parts(images, wide) for images in (8, 4, 2)] == [4, 2, 1]
