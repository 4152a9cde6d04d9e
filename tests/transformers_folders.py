"""Small random CLIPs in transformers' layout, and open_clip's weights written in it."""

from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

CONTEXT = 16
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = TEXT | {"image_size": 32, "patch_size": 8}
LETTERS = sorted("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def clip_tokenizer() -> object:
    """CLIP's kind, of single letters."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


def gemma_tokenizer(name: str = "GemmaTokenizer") -> object:
    """SigLIP 2's kind, of single letters."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    return getattr(transformers, name)(vocab={word: i for i, word in enumerate(words)}, merges=[])


def write_clip(folder: Path, hidden_act: str = "quick_gelu") -> CLIPModel:
    """A CLIP that resizes to 40 and cuts out 32 pixels."""
    tokenizer = clip_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = TEXT | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    activation = {"hidden_act": hidden_act}
    config = CLIPConfig(text_config=text | activation, vision_config=VISION | activation, projection_dim=24)
    square = {"height": 32, "width": 32}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=square)
    return _write(folder, CLIPModel(config), tokenizer, processor)


def write_siglip(folder: Path) -> SiglipModel:
    """A SigLIP 2 of fixed resolution, which is published as a SigLIP."""
    tokenizer = gemma_tokenizer()
    config = SiglipConfig(
        text_config=TEXT | {"vocab_size": 80, "max_position_embeddings": CONTEXT, "projection_size": 32},
        vision_config=VISION,
    )
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2)
    return _write(folder, SiglipModel(config), tokenizer, processor)


def write_naflex(folder: Path) -> Siglip2Model:
    """A SigLIP 2 that keeps the aspect ratio."""
    config = Siglip2Config(
        text_config=TEXT | {"vocab_size": 80, "max_position_embeddings": CONTEXT, "projection_size": 32},
        vision_config=TEXT | {"patch_size": 8, "num_patches": 16},
    )
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    return _write(folder, Siglip2Model(config), gemma_tokenizer("Siglip2Tokenizer"), processor)


def _write(folder: Path, model: nn.Module, tokenizer, processor) -> nn.Module:
    torch.manual_seed(0)
    model.init_weights()
    for part in (model.eval(), tokenizer, processor):
        part.save_pretrained(folder)
    return model


def write_as_transformers(folder: Path, clip: nn.Module, mean, std, hidden_act: str = "gelu") -> None:
    """Writes open_clip's model, its image encoder with heads of 32, as a CLIP of transformers."""
    weights, size = clip.state_dict(), clip.visual.image_size[0]
    width, layers = clip.visual.conv1.out_channels, len(clip.visual.transformer.resblocks)
    text_width, text_layers = clip.token_embedding.embedding_dim, len(clip.transformer.resblocks)
    config = CLIPConfig(
        text_config={
            **_sizes(text_width, text_layers, clip.transformer.resblocks[0].attn.num_heads, hidden_act),
            "vocab_size": clip.vocab_size, "max_position_embeddings": clip.context_length,
        },
        vision_config={
            **_sizes(width, layers, clip.visual.transformer.resblocks[0].attn.num_heads, hidden_act),
            "image_size": size, "patch_size": clip.visual.conv1.kernel_size[0],
        },
        projection_dim=clip.visual.proj.shape[1],
    )  # fmt: skip
    model = CLIPModel(config)
    model.load_state_dict(_renamed(weights), strict=False)
    square = {"height": size, "width": size}
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size=square, image_mean=list(mean), image_std=list(std)
    )
    for part in (model, clip_tokenizer(), processor):
        part.save_pretrained(folder)


def _sizes(width: int, layers: int, heads: int, hidden_act: str) -> dict:
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "hidden_act": hidden_act,
    }  # fmt: skip


RENAMED = (
    ("visual.conv1", "vision_model.embeddings.patch_embedding"),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre", "vision_model.pre_layrnorm"),
    ("visual.ln_post", "vision_model.post_layernorm"),
    ("visual.transformer.resblocks", "vision_model.encoder.layers"),
    ("transformer.resblocks", "text_model.encoder.layers"),
    ("token_embedding", "text_model.embeddings.token_embedding"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final", "text_model.final_layer_norm"),
)
IN_LAYERS = (
    ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
)  # fmt: skip


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names and shapes for open_clip's weights."""
    found = {
        "visual_projection.weight": weights["visual.proj"].T,
        "text_projection.weight": weights["text_projection"].T,
        "logit_scale": weights["logit_scale"],
    }
    for name, value in weights.items():
        before, after = next((pair for pair in RENAMED if name.startswith(pair[0])), (name, None))
        if after is None:
            continue
        name = after + name.removeprefix(before)
        for old, new in IN_LAYERS:
            name = name.replace(f".{old}.", f".{new}.")
        if ".attn.in_proj_" in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                found[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = third
        else:
            found[name] = value
    return {name: value.contiguous() for name, value in found.items()}
