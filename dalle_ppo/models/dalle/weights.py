"""Reads and writes the weights of DALL·E mini and Mega, strictly and in bounded memory.

The published files are float16 torch files. They lack the scales of norms that have none in the original
models. Exactly those are filled with ones; any other difference is an error that names the tensors.
"""

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dalle_ppo.base.tensor_files import save_state_dict, save_tensors
from dalle_ppo.models.dalle.bart import PAD_TOKEN, BartDecoder, BartEncoder
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
from dalle_ppo.models.dalle.tokenizer import TextTokenizer
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder
from dalle_ppo.models.dalle.weight_files import VQGAN_ENCODER, WeightFiles

VQGAN_PRESET = "imagenet_f16_16384"
SCALELESS_NORM = re.compile(
    r"(.+\.)?(pre_self_attn_layer_norm|pre_encoder_attn_layer_norm|glu\.ln[01]|final_ln)\.weight"
)
NAMES_SHOWN = 12
NO_ENCODER_HINT = (
    "the published weights have none: convert the original checkpoints with converters/flax_to_safetensors.py"
)
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class PublishedModel:
    """The parts of DALL·E mini or Mega."""

    tokenizer: TextTokenizer
    encoder: BartEncoder
    decoder: BartDecoder
    vqgan: VqganDecoder


def load_published(
    files: WeightFiles, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PublishedModel:
    """Loads a whole model.

    Args:
        files: from `find_weight_files` or `download`.
        device: where the networks go.
        dtype: for encoder and decoder. The VQGAN stays float32, as in the `min-dalle` package. So does the
            decoder's head, which computes in float32: narrower weights would be widened at every token.

    Raises:
        ValueError: a file does not fit; says which and why.
    """
    config = BART_PRESETS[files.preset]
    tokenizer = TextTokenizer.from_files(files.vocab, files.merges, config.num_text_tokens)
    if tokenizer.vocab_size > config.text_vocab_count or tokenizer.pad_id != PAD_TOKEN:
        raise ValueError(
            f"{files.vocab}: {tokenizer.vocab_size} ids and padding {tokenizer.pad_id}; DALL·E "
            f"{files.preset} has at most {config.text_vocab_count} ids and padding {PAD_TOKEN}"
        )
    with torch.device("meta"):
        encoder, decoder = BartEncoder(config), BartDecoder(config)
        vqgan = VqganDecoder(VQGAN_PRESETS[VQGAN_PRESET])
    model = PublishedModel(
        tokenizer,
        load_weights(encoder, files.encoder, device, dtype),
        load_weights(decoder, files.decoder, device, dtype),
        load_weights(vqgan, files.detoker, device, torch.float32),
    )
    decoder.lm_head.to(torch.promote_types(dtype, torch.float32))
    return model


def load_vqgan_encoder(files: WeightFiles, device: torch.device | str = "cpu") -> VqganEncoder:
    """Loads the network that turns images into tokens.

    Raises:
        ValueError: the files hold none, or it does not fit.
    """
    if files.vqgan_encoder is None:
        raise ValueError(
            f"{files.detoker} has no {VQGAN_ENCODER} next to it to encode images; {NO_ENCODER_HINT}"
        )
    with torch.device("meta"):
        encoder = VqganEncoder(VQGAN_PRESETS[VQGAN_PRESET])
    return load_weights(encoder, files.vqgan_encoder, device)


def load_weights(
    network: Module, path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Module:
    """Loads a network's weights in place and freezes it.

    Memory grows by the network's own weights and at most one tensor of the file.

    Args:
        network: built on the meta device, so that its weights take no memory yet.
        path: a `.pt` or `.safetensors` file of tensors of any float dtype.
        device: where the weights go.
        dtype: what they are converted to.

    Returns:
        The network.

    Raises:
        ValueError: the file cannot be used; names it and what is wrong with it.
    """
    path, wanted = Path(path), network.state_dict()
    tensors = read_tensors(path, sum(tensor.numel() for tensor in wanted.values()))
    check_tensors(tensors, wanted, path)
    loaded, mapped = {}, 0
    largest = max(tensor.nbytes for tensor in tensors.values())
    for name, target in wanted.items():
        if name not in tensors:
            loaded[name] = torch.ones(target.shape, device=device, dtype=dtype)
            continue
        mapped += tensors[name].nbytes
        if mapped > largest:  # pages that were read count as memory until the file is mapped again
            tensors, mapped = map_tensors(path), tensors[name].nbytes
        loaded[name] = tensors[name].to(device, dtype, copy=True)
    network.load_state_dict(loaded, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def read_tensors(path: Path, num_values: int) -> dict[str, Tensor]:
    """Checks a weight file and maps it into memory, unread.

    Args:
        path: a `.pt` or `.safetensors` file.
        num_values: how many a complete file holds, for the error message.

    Raises:
        ValueError: it is absent, cut short, damaged, not a file of tensors, or a pickle that names code.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    expected = f"expected a file of tensors of about {2 * num_values / 1e6:.0f} MB as float16"
    if path.suffix != ".safetensors":
        _check_format(path)
    try:
        if path.suffix != ".safetensors":
            _check_sums(path)
        tensors = map_tensors(path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path}: refused, its pickle names {named.group(1) if named else 'more than tensors'}, which "
            "could run code; use a file of tensors only"
        ) from None
    except Exception as error:  # a broken file can make its reader fail anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise ValueError(
            f"{path}: cut short or damaged ({path.stat().st_size / 1e6:.1f} MB; {reason}); "
            f"{expected}: copy or download it again"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise ValueError(f"{path}: holds no dictionary of tensors; {expected}")
    return tensors


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Maps a file's tensors by name; nothing is read before it is used."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _check_format(path: Path) -> None:
    """Rejects what is not torch's zip format.

    Raises:
        ValueError: it is another format; names what is there instead.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"\x80"):
        raise ValueError(
            f"{path}: refused, a bare pickle (torch before 1.6, or no weights at all) cannot be mapped; "
            "load it where it is trusted and torch.save its tensors again"
        )
    if head and not head.startswith(b"PK"):
        raise ValueError(
            f"{path}: not a torch file, it begins with {head!r}; is it an error page or a Git LFS pointer?"
        )


def _check_sums(path: Path) -> None:
    """Compares a zip file's content with its checksums, as torch itself does not.

    Raises:
        zipfile.BadZipFile: the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if packed := next((e.filename for e in archive.infolist() if e.compress_type), None):
            raise zipfile.BadZipFile(f"{packed} is compressed, which torch never does")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def check_tensors(tensors: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Compares names, shapes and kinds.

    Args:
        tensors: the file's tensors.
        wanted: the network's tensors.
        path: for the message.

    Raises:
        ValueError: tensors are missing, unexpected or misshapen; names them.
    """
    missing = [n for n in wanted if n not in tensors and not SCALELESS_NORM.fullmatch(n)]
    unexpected = [n for n in tensors if n not in wanted]
    wrong = [
        f"{n} {list(tensors[n].shape)} {str(tensors[n].dtype).removeprefix('torch.')} instead of "
        f"{list(target.shape)}"
        for n, target in wanted.items()
        if n in tensors and (tensors[n].shape != target.shape or not tensors[n].is_floating_point())
    ]
    groups = {"missing": missing, "unexpected": unexpected, "misshapen": wrong}
    problems = [f"{kind} {_some(names)}" for kind, names in groups.items() if names]
    if problems:
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def save_weights(network: nn.Module, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a network's weights.

    Args:
        network: on any device, in any dtype.
        path: `.safetensors`, or `.pt` for the `min-dalle` package.
        dtype: what to write them in.
    """
    tensors = {
        name: value.detach().to("cpu", dtype).contiguous() for name, value in network.state_dict().items()
    }
    if Path(path).suffix == ".safetensors":
        save_tensors(tensors, path)
    else:
        save_state_dict(tensors, path)
