"""Converts DALL·E mini's or Mega's original Flax checkpoints to a folder that `--model` takes.

    python converters/flax_to_safetensors.py --dalle dalle-mini --vqgan vqgan --out models/mini

The two folders are copies of the hub repositories dalle-mini/dalle-mini (or dalle-mega) and
dalle-mini/vqgan_imagenet_f16_16384. Besides what `min-dalle` publishes, OUT then holds the VQGAN's
encoder, which `python -m dalle_ppo.pretrain --model OUT --data PHOTOS` needs to fine-tune on photos.
Needs the `convert` extra.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

CHECKPOINT = "flax_model.msgpack"


def main() -> int:
    """Convert and check. Exit code 2 on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dalle", type=Path, required=True, help=f"folder with {CHECKPOINT} and vocab.json")
    parser.add_argument("--vqgan", type=Path, required=True, help=f"folder with {CHECKPOINT}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="data type of the weights"
    )
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from dalle_ppo.base.new_folder import refuse_existing, whole_folder
    from dalle_ppo.models.dalle.flax_weights import bart_tensors, read_flax, vqgan_tensors
    from dalle_ppo.models.dalle.presets import BART_PRESETS

    refuse_existing(arguments.out)
    for name in ("vocab.json", "merges.txt"):
        if not (arguments.dalle / name).is_file():
            raise ValueError(
                f"{arguments.dalle / name} does not exist; --dalle must be a copy of the hub repository"
            )
    encoder, decoder = bart_tensors(read_flax(arguments.dalle / CHECKPOINT))
    vqgan_encoder, detoker = vqgan_tensors(read_flax(arguments.vqgan / CHECKPOINT))
    depth = len({name.split(".")[1] for name in decoder if name.startswith("layers.")})
    preset = next((name for name in ("mini", "mega") if BART_PRESETS[name].num_layers == depth), None)
    if preset is None:
        raise ValueError(f"{arguments.dalle / CHECKPOINT}: {depth} decoder layers; mini has 12, Mega 24")
    parts = {"encoder": encoder, "decoder": decoder, "detoker": detoker, "vqgan_encoder": vqgan_encoder}
    with whole_folder(arguments.out) as folder:
        _write(folder, arguments, preset, parts)
    print(f"wrote {arguments.out}, DALL·E {preset} with the VQGAN's encoder; use it with --model")
    return 0


def _write(folder: Path, arguments: argparse.Namespace, preset: str, parts: dict[str, dict]) -> None:
    """Checks every tensor's name and shape, and writes files under the hub's names."""
    import torch

    from dalle_ppo.base.tensor_files import save_tensors
    from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
    from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
    from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder
    from dalle_ppo.models.dalle.weight_files import HUB_NAMES, VQGAN_ENCODER
    from dalle_ppo.models.dalle.weights import VQGAN_PRESET, check_tensors

    bart, vqgan = BART_PRESETS[preset], VQGAN_PRESETS[VQGAN_PRESET]
    with torch.device("meta"):
        networks = {
            "encoder": BartEncoder(bart),
            "decoder": BartDecoder(bart),
            "detoker": VqganDecoder(vqgan),
            "vqgan_encoder": VqganEncoder(vqgan),
        }
    names = HUB_NAMES[preset] | {"vqgan_encoder": VQGAN_ENCODER}
    for part, network in networks.items():
        source = arguments.dalle if part in ("encoder", "decoder") else arguments.vqgan
        check_tensors(parts[part], network.state_dict(), source / CHECKPOINT)
        dtype = getattr(torch, arguments.dtype)
        tensors = {name: tensor.to(dtype) for name, tensor in parts.pop(part).items()}
        save_tensors(tensors, (folder / names[part]).with_suffix(".safetensors"))
    for part, name in (("vocab", "vocab.json"), ("merges", "merges.txt")):
        shutil.copyfile(arguments.dalle / name, folder / names[part])


if __name__ == "__main__":
    sys.exit(main())
