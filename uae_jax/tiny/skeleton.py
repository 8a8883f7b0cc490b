"""Everything in the tiny model's folder but the weights: `python -m uae_jax.tiny.skeleton [FOLDER]`.

    inference.json                    what captions and paintings are asked for where nobody says
    llm_model/                        config, tokenizer, chat template, image settings
    SD3/scheduler/                    the noise schedule
    scorers/{clip,longclip}/          tokenizer, image settings
    scorers/{dinov2,dinov3}/          image settings

Writes into the package unless told otherwise; files that are there are replaced, weights stay.
"""

import sys
from pathlib import Path

from uae_jax.data.vision_inputs import CLIP_MEAN, CLIP_STD
from uae_jax.models import clip
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.qwen2_5_vl import config as qwen
from uae_jax.tiny import tokenizer
from uae_jax.weights import checkpoint, qwen2_5_vl, uae

SIDE = AutoencoderKLConfig.tiny().sample_size  # of all images, pixels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BICUBIC, _BILINEAR = 3, 2  # as PIL numbers them

INFERENCE = {
    "caption": {"prompt": tokenizer.QUESTION, "max_new_tokens": 192, "temperature": 0.0},
    "paint": {"steps": 20, "guidance": 3.0, "negative_prompt": ""},
}


def write(folder: Path) -> None:
    """Writes all files that do not depend on training."""
    encoder = folder / uae.LLM
    for name in (uae.LLM, f"{uae.SD3}/scheduler", *(f"{uae.SCORERS}/{name}" for name in _SCORERS)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tokenizer.write_qwen(encoder)
    checkpoint.write_json(encoder / "config.json", qwen2_5_vl.ARCHITECTURE.config_to_json(qwen.tiny()))
    checkpoint.write_json(encoder / "preprocessor_config.json", _encoder_images())
    checkpoint.write_json(folder / uae.INFERENCE, INFERENCE)
    checkpoint.write_json(folder / f"{uae.SD3}/scheduler/scheduler_config.json", _scheduler())
    for name, image in _SCORERS.items():
        checkpoint.write_json(folder / f"{uae.SCORERS}/{name}/preprocessor_config.json", image)
    tokenizer.write_clip(folder / f"{uae.SCORERS}/clip", clip.tiny().text.positions)
    tokenizer.write_clip(folder / f"{uae.SCORERS}/longclip", clip.tiny_longclip().text.positions)


def _encoder_images() -> dict:
    vision = qwen.tiny().vision
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.merge_size,
        # One size for all images: the only one that the tower has seen.
        "min_pixels": SIDE * SIDE,
        "max_pixels": SIDE * SIDE,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def _scheduler() -> dict:
    # 16x16 latents need no shift: it makes up for the many pixels of 1024x1024 images (arXiv 2403.03206, 5.3.2).
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def _scorer(kind: str, resample: int, mean: tuple, std: tuple, crop: bool) -> dict:
    value = {"image_processor_type": kind, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
    value |= {"do_normalize": True, "image_mean": list(mean), "image_std": list(std), "resample": resample}
    whole = {"height": SIDE, "width": SIDE}
    if not crop:
        return value | {"size": whole, "do_center_crop": False}
    return value | {"size": {"shortest_edge": SIDE}, "do_center_crop": True, "crop_size": whole, "do_convert_rgb": True}


_CLIP = _scorer("CLIPImageProcessor", _BICUBIC, CLIP_MEAN, CLIP_STD, crop=True)
_SCORERS = {
    "clip": _CLIP,
    "longclip": _CLIP,
    "dinov2": _scorer("BitImageProcessor", _BICUBIC, IMAGENET_MEAN, IMAGENET_STD, crop=True),
    "dinov3": _scorer("DINOv3ViTImageProcessorFast", _BILINEAR, IMAGENET_MEAN, IMAGENET_STD, crop=False),
}


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else checkpoint.EMBEDDED / "tiny")
