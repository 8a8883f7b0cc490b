"""Similarity scores against transformers: models, published image processors and cosine."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("skimage")

from PIL import Image

from tests.parity import randomise
from tests.photos import photographs
from uae_jax.rewards import scorers
from uae_jax.rewards.scorers import Scorer

SIDE = 32
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}


def pairs():
    a, b, c = photographs()
    blurred = a.resize((40, 40)).resize(a.size)
    return [a, b, c, a], [blurred, c, c.rotate(90, expand=True), a]


def clip():
    config = transformers.CLIPVisionConfig(**SMALL, intermediate_size=48, projection_dim=24)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil(**size)
    return transformers.CLIPVisionModelWithProjection(config), processor, lambda out: out.image_embeds


def dinov2():
    config = transformers.Dinov2Config(**SMALL, mlp_ratio=2)
    size = {"size": {"shortest_edge": 40}, "crop_size": {"height": SIDE, "width": SIDE}}
    statistics = {"image_mean": scorers.IMAGENET_MEAN, "image_std": scorers.IMAGENET_STD}
    processor = transformers.models.bit.image_processing_pil_bit.BitImageProcessorPil(**size, **statistics)
    return transformers.Dinov2Model(config), processor, lambda out: out.last_hidden_state[:, 0]


@pytest.mark.parametrize("family", [clip, dinov2])
def test_similarity_is_that_of_transformers(family, tmp_path):
    torch.manual_seed(0)
    model, processor, pick = family()
    model = randomise(model, 1, std=0.2)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.to_dict(), default=str))
    first, second = pairs()
    with torch.inference_mode():
        one, two = (pick(model(**processor(images=side, return_tensors="pt"))) for side in (first, second))
    wanted = torch.nn.functional.cosine_similarity(one, two).numpy()
    scorer = Scorer.from_pretrained(tmp_path)
    got = scorer.similarity(first, second)
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    assert np.ptp(wanted) > 0.05  # scores that are all alike would prove little
    np.testing.assert_allclose(got[3], 1.0, atol=1e-6)  # an image and itself
    assert scorer.similarity(first[:1], second[:1])[0] == pytest.approx(got[0], abs=1e-5)
    assert scorer.similarity([], []).shape == (0,)


def dinov3_pixels(image: Image.Image, side: int) -> torch.Tensor:
    """What `DINOv3ViTImageProcessor` does: rescale, resize, normalise, in floats.

    It needs torchvision, whose `resize` of floats is this call of PyTorch's.
    """
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (scorers.IMAGENET_MEAN, scorers.IMAGENET_STD))
    return (pixels - mean) / std


@pytest.mark.parametrize("stated", [{}, {"size": {"height": 224, "width": 224}, "resample": 2}], ids=["bare", "stated"])
def test_pixels_for_dinov3_are_floats_until_the_end(stated):
    # Bytes in between would move a pixel by up to 1 / 255 / 0.224 = 0.017; floats leave rounding alone.
    way = scorers.preprocessing_from_json(stated, scorers.DINOV3_INPUT)
    for photo in photographs():
        wanted = dinov3_pixels(photo, 224)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(way(photo), wanted, atol=1e-3)
        on_device = way.on_device(np.asarray(photo, np.float32)[None] / 255)[0]
        np.testing.assert_allclose(on_device, wanted, atol=1e-3)


def test_dinov3_scales_floats_without_cropping(tmp_path):
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(**SMALL, intermediate_size=48, num_register_tokens=2)
    model = randomise(transformers.DINOv3ViTModel(config), 1, std=0.2)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": SIDE, "width": SIDE}}))

    def features(image: Image.Image) -> torch.Tensor:
        return model(dinov3_pixels(image, SIDE)).last_hidden_state[:, 0]

    first, second = pairs()
    with torch.inference_mode():
        wanted = [
            torch.nn.functional.cosine_similarity(features(a), features(b)).item()
            for a, b in zip(first, second, strict=True)
        ]
    np.testing.assert_allclose(Scorer.from_pretrained(tmp_path).similarity(first, second), wanted, atol=1e-4)


def test_a_model_without_image_features_is_refused(tmp_path):
    config = transformers.CLIPTextConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.CLIPTextModelWithProjection(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no image features; wanted CLIP, DINOv2 or DINOv3"):
        Scorer.from_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(90, 60), (40, 100), (64, 64), (20, 17)])
@pytest.mark.parametrize(
    "way",
    [scorers.CLIP_INPUT, scorers.DINOV2_INPUT, scorers.DINOV3_INPUT],
    ids=["bicubic, cropped", "cropped smaller", "bilinear, squashed"],
)
def test_preprocessing_on_the_device_is_that_of_the_host(way, shape):
    # PIL rounds to whole levels after each of its two passes: half a level each, up to 1.4 times that where weights of
    # both signs add up; a level is 1 / 255 / 0.23 here. Floats are not rounded. Of much taller images newer versions of
    # PIL scale rows first; which pass clips an overshoot then differs, at single pixels.
    small = dataclasses.replace(way, side=32, shortest=way.shortest and 32 + 4 * (way.shortest > way.side))
    photo = photographs()[0].resize(shape)
    got = small.on_device(np.asarray(photo, np.float32)[None] / 255)[0]
    wanted = small(photo)
    assert got.shape == wanted.shape == (32, 32, 3)
    level = 1 / 255 / min(way.std)
    difference = np.abs(got - wanted)
    overshoots = shape[1] > 2 * shape[0] and way is not scorers.DINOV3_INPUT
    assert (np.quantile(difference, 0.99) if overshoots else difference.max()) < 2 * level
    assert difference.mean() < 0.5 * level


@pytest.mark.parametrize(("size", "corner"), [((307, 400), (0, 34)), ((400, 303), (36, 0)), ((224, 226), (0, 1))])
def test_longclip_is_cropped_as_torchvision_does(size, corner):
    # Its own transform ends in CenterCrop, whose corner is int(round(left_out / 2)): of 67 pixels 34 (33.5 to even), of
    # 71 then 36 (35.5 to even), and of 2 just 1. transformers crops CLIP at 33 and 35.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    scale = dataclasses.replace(scorers.CLIP_INPUT, mean=(0, 0, 0), std=(1, 1, 1), rounded=True)
    short = min(size)
    scaled = image.resize([int(s * 224 / short) for s in size], Image.Resampling.BICUBIC)
    wanted = np.asarray(scaled.crop((*corner, corner[0] + 224, corner[1] + 224))) / np.float32(255)
    np.testing.assert_array_equal(scale(image), wanted)


def test_who_crops_as_torchvision_does():
    # What a folder says of itself is in transformers' terms.
    assert Scorer.from_pretrained("tiny/scorers/clip").preprocessing.rounded is False
    long = dataclasses.replace(scorers.CLIP_INPUT, rounded=True)
    assert scorers.preprocessing_from_json({}, long).rounded
    assert not scorers.preprocessing_from_json({"crop_size": 224}, long).rounded


@pytest.mark.parametrize("name", ["clip", "longclip", "dinov2", "dinov3"])
def test_nothing_is_multiplied_in_less_than_float32(name):
    # On accelerators less is the default: bfloat16 on TPUs, TF32 on GPUs.
    scorer = Scorer.from_pretrained(f"tiny/scorers/{name}")
    images = jnp.zeros((1, scorer.preprocessing.side, scorer.preprocessing.side, 3))
    gradient = jax.make_jaxpr(jax.grad(lambda x: scorer.features(scorer.model.params, x).sum()))(images)
    products = str(gradient).count("dot_general[")
    assert products > 10
    assert str(gradient).count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products
