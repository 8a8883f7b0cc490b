"""Writes a UAE checkpoint in the published layout, small and random, with transformers, PEFT and diffusers.

What comes back are the PyTorch originals, to compare with.
"""

import dataclasses
import json
from pathlib import Path

import diffusers
import peft
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.parity import randomise

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
VOCABULARY = 256 + len(SPECIAL)

# The published template's structure: a default system line, roles in ChatML, an image as three tokens.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclasses.dataclass
class Originals:
    """The PyTorch side of a checkpoint.

    Attributes:
      encoder: Qwen2.5-VL, PEFT-wrapped where there is an adapter.
      projector, decoder (PEFT-wrapped likewise), vae, text_encoders: the other parts.
      tokenizer: of the encoder.
    """

    encoder: torch.nn.Module
    projector: torch.nn.Module
    decoder: torch.nn.Module
    vae: torch.nn.Module
    text_encoders: tuple[torch.nn.Module, torch.nn.Module]
    tokenizer: object


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer with Qwen's special tokens and no merges: every byte is a token."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=CHAT_TEMPLATE,
    )


def encoder(seed: int = 0, width: int = 32, layers: int = 2) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """A small random encoder for `tokenizer`."""
    torch.manual_seed(seed)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "vocab_size": VOCABULARY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, width // 8 - 2]},
            "bos_token_id": 256,
            "eos_token_id": 258,
            "pad_token_id": 256,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
        },
        vision_start_token_id=259,
        vision_end_token_id=260,
        image_token_id=261,
        video_token_id=262,
        tie_word_embeddings=True,
    )
    return randomise(transformers.Qwen2_5_VLForConditionalGeneration(config), seed, std=0.4)


def write(folder: Path, seed: int = 0, lora: bool = True) -> Originals:
    """Writes a whole checkpoint; `lora` adds both adapters."""
    llm = encoder(seed)
    torch.manual_seed(seed + 1)
    projector = torch.nn.Sequential(torch.nn.Linear(32, 40), torch.nn.GELU(), torch.nn.Linear(40, 24))
    projector = randomise(projector, seed + 4, std=0.8)  # so large that the prompt shows in the painting
    dit = randomise(_decoder(), seed + 2)
    vae = randomise(_vae(), seed + 3, std=0.02)
    texts = (_text_encoder(16, 12), _text_encoder(24, 20))
    _write_encoder(folder / "llm_model", llm, projector)
    dit.save_pretrained(folder / "dit")
    vae.save_pretrained(folder / "SD3/vae")
    for name, part in zip(("text_encoder", "text_encoder_2"), texts, strict=True):
        part.save_pretrained(folder / "SD3" / name)
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "SD3/scheduler")
    if lora:
        llm, dit = _write_adapters(folder, llm, projector, dit, seed)
    return Originals(llm.eval(), projector, dit.eval(), vae, texts, tokenizer())


def _decoder() -> diffusers.SD3Transformer2DModel:
    torch.manual_seed(5)
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )


def _vae() -> diffusers.AutoencoderKL:
    torch.manual_seed(6)
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 16, 16],
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def _text_encoder(width: int, projection: int) -> transformers.CLIPTextModelWithProjection:
    torch.manual_seed(width)
    config = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection,
        max_position_embeddings=12,
        bos_token_id=97,
        eos_token_id=98,
        pad_token_id=98,
    )
    return transformers.CLIPTextModelWithProjection(config).eval()


def _write_encoder(folder: Path, llm: torch.nn.Module, projector: torch.nn.Module) -> None:
    """Encoder and projector in one state dict, the encoder's keys as on the hub."""
    llm.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"projector.{key}": value.detach().clone() for key, value in projector.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save_pretrained(folder)
    processor = transformers.models.qwen2_vl.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 65_536}
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.to_dict(), default=str))


def _write_adapters(folder, llm, projector, dit, seed):
    """Adapters in the two published ways: a whole wrapped state dict in three shards, and a PEFT folder."""
    llm = peft.get_peft_model(
        llm,
        peft.LoraConfig(r=32, lora_alpha=64, target_modules=r".*language_model\.layers\..*_proj"),
    )
    _randomise_adapters(llm, seed + 10)
    outer = torch.nn.Module()
    outer.model, outer.projector = llm, projector
    tensors = {}
    for key, value in outer.state_dict().items():  # from the names of transformers 5 to those of 4.50
        key = key.replace("base_model.model.model.language_model.", "base_model.model.model.")
        key = key.replace("base_model.model.model.visual.", "base_model.model.visual.")
        tensors[key] = value.detach().clone().contiguous()
    (folder / "llm_lora").mkdir()
    keys = sorted(tensors)
    for i in range(3):
        part = {key: tensors[key] for key in keys[i::3]}
        save_file(part, folder / f"llm_lora/model-{i + 1:05d}-of-00003.safetensors", metadata={"format": "pt"})
    names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    dit = peft.get_peft_model(
        dit, peft.LoraConfig(r=4, lora_alpha=8, target_modules=[f"attn.{name}" for name in names])
    )
    _randomise_adapters(dit, seed + 11)
    dit.save_pretrained(folder / "dit_lora")
    return llm, dit


def _randomise_adapters(model: torch.nn.Module, seed: int) -> None:
    """B starts at zero, which would hide a missing adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
