"""Trains the built-in world's CLIP with open_clip's model classes, a JSON config and its own vocabulary."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.making.training import image_tensor, save_half, train_loop
from dalle_ppo.iconworld.making.vqgan import TAG_SHARES
from dalle_ppo.iconworld.scenes import Scene, draw_batch
from dalle_ppo.models.clip import BPE_FILE, OpenClip, load_clip
from dalle_ppo.models.dalle.tokenizer import write_open_clip_bpe

CONTEXT_LENGTH = 48
MEAN = STD = (0.5, 0.5, 0.5)


def model_config(vocab_size: int) -> dict:
    """The model in open_clip's config format."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
    }


def write_clip_folder(folder: Path, texts: list[str], seed: int) -> OpenClip:
    """Writes config, vocabulary and fresh weights into `folder`; loads them through open_clip."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_open_clip_bpe(folder / BPE_FILE, texts, num_merges=600)
    config = {
        "model_cfg": model_config(vocab_size),
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.manual_seed(seed)
    save_half(open_clip.CLIP(**config["model_cfg"]), folder / "open_clip_model.safetensors")
    return load_clip(str(folder), None)


def sample_pairs(rng: np.random.Generator, num: int) -> tuple[list[str], list[Scene]]:
    """Training captions and their scenes, in the world's default mix of tags."""
    captions = [sample_caption(rng, tag, "train") for tag in rng.choice(TAGS, size=num, p=TAG_SHARES)]
    scenes = [sample_scene(rng, caption) for caption in captions]
    return [caption.text for caption in captions], scenes


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over a batch of pairs, normalised embeddings [B, D] each.

    Source: https://arxiv.org/abs/2103.00020, figure 3.
    """
    logits = scale.exp().clamp(max=100) * image @ text.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(
    folder: Path, seed: int, num_steps: int, decode, pool_size: int, batch_size: int = 160
) -> OpenClip:
    """Trains on captions with drawn and VQGAN-decoded scenes, and saves into `folder`.

    Args:
        folder: becomes an open_clip folder.
        seed: seed of weights and data.
        num_steps: optimiser steps.
        decode: maps scenes to VQGAN reconstructions, uint8 [N, 64, 64, 3].
        pool_size: number of reconstructions to prepare.
        batch_size: pairs per step, a third of them reconstructions.
    """
    rng = np.random.default_rng([seed, 3])
    unfinished = folder.with_name(folder.name + ".unfinished")
    clip = write_clip_folder(unfinished, sample_pairs(rng, 20_000)[0], seed)
    pool_texts, pool_scenes = sample_pairs(rng, pool_size)
    pool_images = decode(pool_scenes)
    model = clip.model.train().requires_grad_(True)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        texts, scenes = sample_pairs(rng, batch_size - batch_size // 3)
        picks = rng.integers(pool_size, size=batch_size // 3)
        texts = texts + [pool_texts[i] for i in picks]
        batch = (image_tensor(np.concatenate([draw_batch(scenes), pool_images[picks]])) - 0.5) / 0.5
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image(batch)
            text = model.encode_text(clip.tokenizer(texts))
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        loss = contrastive_loss(image, text, model.logit_scale)
        return loss, {"loss": float(loss.detach()), "scale": float(model.logit_scale.detach().exp())}

    for _ in train_loop("CLIP", [model], num_steps, 1e-3, loss_of_step, 0.1, (0.9, 0.98)):
        pass
    save_half(model.eval(), unfinished / "open_clip_model.safetensors")
    unfinished.rename(folder)
    return load_clip(str(folder), None)
