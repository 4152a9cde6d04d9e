"""Everything that configs/laion_nsfw_*.yaml fetch, as random stand-ins where the downloads would lie.

Weights of DALL·E, captions and CLIP go into the hub's cache, detectors into this project's. Sizes are those
of the presets and of open_clip's configurations when a file is written: the true ones, or those of `TINY`.
"""

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from published_models import SMALL, SMALL_VQGAN, random_published, write_published
from safetensors.torch import save_file

from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
from dalle_ppo.models.dalle.weight_files import HUB_REPO
from dalle_ppo.models.dalle.weights import VQGAN_PRESET
from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.models.heads.keras.published import DETECTORS
from dalle_ppo.models.heads.nsfw import save_head

COMMIT = "a" * 40
CAPTIONS_REPO = "laion/relaion400m"
CLIPS = ("ViT-L-14-quickgelu", "ViT-B-32-quickgelu")


def _tiny_clip(name: str) -> dict:
    """The configuration of a CLIP with its own width of embeddings, vocabulary and activation, else small."""
    config = open_clip.get_model_config(name)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    return config | {
        "vision_cfg": config["vision_cfg"] | vision,
        "text_cfg": config["text_cfg"] | {"width": 32, "heads": 2, "layers": 1},
    }


# (table of sizes, key, small sizes)
TINY = [
    (BART_PRESETS, "mini", SMALL),
    (BART_PRESETS, "mega", replace(SMALL, num_layers=1, image_vocab_count=SMALL.image_vocab_count + 5)),
    (VQGAN_PRESETS, VQGAN_PRESET, SMALL_VQGAN),
    *((open_clip.factory._MODEL_CONFIGS, name, _tiny_clip(name)) for name in CLIPS),
]


def write_weights(cache: Path, preset: str) -> None:
    """DALL·E mini or Mega as the repository of min-dalle holds it."""
    published = random_published(BART_PRESETS[preset], vqgan=VQGAN_PRESETS[VQGAN_PRESET])
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        move_to_hub_cache(write_published(Path(folder), published, "hub", preset), cache, "models", HUB_REPO)


def write_clip(cache: Path, name: str) -> None:
    """A CLIP as the repository that open_clip's tag `openai` names holds it."""
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    repo = open_clip.get_pretrained_cfg(name, "openai")["hf_hub"].rstrip("/")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        save_file(model.state_dict(), Path(folder) / "open_clip_model.safetensors")
        move_to_hub_cache(Path(folder), cache, "models", repo)


def write_detector(cache: Path, name: str) -> None:
    """One of LAION's detectors as it is once converted: a logistic regression that finds little unsafe."""
    detector = DETECTORS[name]
    dimension = open_clip.get_model_config(detector.clip_model)["embed_dim"]
    kernel = torch.randn(dimension, 1, generator=torch.Generator().manual_seed(0))
    layers = [
        LayerSpec("dense", {}, {"kernel": kernel, "bias": torch.tensor([-3.0])}),
        LayerSpec("activation", {"name": "sigmoid"}),
    ]
    info = HeadInfo(detector.clip_model, detector.clip_pretrained, dimension, "probability", True)
    save_head(cache / f"{name}.safetensors", layers, info)


def write_captions(cache: Path, num_shards: int, rows: int) -> None:
    """Shards of LAION-400M in its columns and under its names of files."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        for part in range(num_shards):
            name = f"part-{part:05d}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"
            pq.write_table(laion_rows(rows, part), Path(folder) / name, compression="snappy")
        move_to_hub_cache(Path(folder), cache, "datasets", CAPTIONS_REPO)


def laion_rows(num_rows: int, seed: int) -> pa.Table:
    """Rows in LAION-400M's columns: captions as the web has them, an eighth of them tagged NSFW."""
    rng = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(500)] + ["boat", "Café", "t-shirt", "&amp;", "2021", "|"]
    texts = [" ".join(rng.choice(words, rng.integers(2, 12))) for _ in range(num_rows)]
    odd = [
        None,
        "",
        "красная лодка на море",
        "<b>bold</b> boat &lt;3",
        "Caf\u00c3\u00a9 💀 \u202eboat",
        "x" * 2000,
    ]
    for row in range(0, num_rows, 20):
        texts[row] = odd[row // 20 % len(odd)]
    tags = np.array(["NSFW", "UNSURE", None, *["UNLIKELY"] * 5], dtype=object)
    return pa.table(
        {
            "SAMPLE_ID": pa.array(rng.integers(0, 1 << 40, num_rows), pa.int64()),
            "URL": [f"https://example.org/{seed}/{row}.jpg" for row in range(num_rows)],
            "TEXT": pa.array(texts, pa.string()),
            "HEIGHT": pa.array(rng.integers(100, 2000, num_rows), pa.int32()),
            "WIDTH": pa.array(rng.integers(100, 2000, num_rows), pa.int32()),
            "LICENSE": ["?"] * num_rows,
            "NSFW": pa.array(rng.choice(tags, num_rows).tolist(), pa.string()),
            "similarity": rng.uniform(0.3, 0.5, num_rows),
        }
    )


def move_to_hub_cache(folder: Path, cache: Path, kind: str, repo: str) -> None:
    """Leaves a folder's files as a download of the branch main does: blobs, and a commit of links to them.

    Args:
        kind: "models" or "datasets".
    """
    entry = cache / f"{kind}--{repo.replace('/', '--')}"
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        blob = entry / "blobs" / hashlib.sha256(name.as_posix().encode()).hexdigest()
        link = entry / "snapshots" / COMMIT / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (entry / "refs").mkdir(exist_ok=True)
    (entry / "refs" / "main").write_text(COMMIT)
