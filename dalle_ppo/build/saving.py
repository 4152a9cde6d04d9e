"""Writes a loaded model to a folder."""

import dataclasses
import json
import shutil
from pathlib import Path

import torch

from dalle_ppo.build.models import LoadedModel
from dalle_ppo.models.dalle.weight_files import SETTINGS_FILE, VQGAN_ENCODER, disk_names
from dalle_ppo.models.dalle.weights import save_weights


def save_model(folder: Path, model: LoadedModel) -> None:
    """Writes a model (built-in world, DALL·E mini or Mega) to a folder that `--model` can load."""
    if model.world is None:
        write_model(folder, model, ".safetensors", torch.float32)
        return
    shutil.copytree(model.world.folder, folder, dirs_exist_ok=True)
    save_weights(model.parts.encoder, folder / "bart_encoder.safetensors")
    save_weights(model.decoder, folder / "bart_decoder.safetensors")


def write_model(folder: Path, model: LoadedModel, suffix: str, dtype: torch.dtype) -> None:
    """Writes all files of DALL·E mini or Mega.

    Args:
        folder: the folder to write into.
        model: a DALL·E mini or Mega model.
        suffix: suffix of the weight files, ".pt" or ".safetensors".
        dtype: data type of the weights.
    """
    names = {part: folder / name for part, name in disk_names(model.files.preset).items()}
    networks = {"encoder": model.parts.encoder, "decoder": model.decoder, "detoker": model.parts.vqgan}
    for part, network in networks.items():
        names[part].parent.mkdir(exist_ok=True)
        save_weights(network, names[part].with_suffix(suffix), dtype)
    shutil.copyfile(model.files.vocab, names["vocab"])
    shutil.copyfile(model.files.merges, names["merges"])
    if model.files.vqgan_encoder:
        shutil.copyfile(model.files.vqgan_encoder, names["detoker"].parent / VQGAN_ENCODER)
    settings = json.dumps(dataclasses.asdict(model.settings), indent=1)
    (folder / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")
