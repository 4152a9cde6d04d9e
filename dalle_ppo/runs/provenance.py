"""What numbers came from: hashes of weights and code, versions of packages."""

import hashlib
import importlib.util
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from dalle_ppo.config.settings import Config
    from dalle_ppo.models.family import PolicyFamily

VERSIONED = ("dalle_ppo", "torch", "open_clip_torch", "numpy")
POLICY_FILE = "policy.safetensors"


def weights_sha256(module: "nn.Module") -> str:
    """Hash of a network's tensors: names, dtypes, shapes and bytes, in order of name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_reference(state: Mapping[str, object], sha256: str, path: str) -> None:
    """Refuses a reference that is not the one a checkpoint was trained from.

    Args:
        state: of the checkpoint.
        sha256: of the reference that `path` gives today, in float32.
        path: `model.path` of the run: of another run, it gives the newest checkpoint.

    Raises:
        ValueError: they differ.
    """
    if state.get("reference_sha256", sha256) != sha256:
        raise ValueError(
            f"model.path: {path} holds other weights than when this run began (was it trained on?); "
            "put the old ones back, or start a new run"
        )


def code_sha256(module_name: str) -> str | None:
    """Hash of a module's file; None where it has none."""
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def path_sha256(path: Path) -> str:
    """Hash of a file, as `sha256sum` gives it; of a folder, that of its files' names and hashes, in order."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{path_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checkpoint_facts(folder: Path) -> dict[str, object]:
    """The iteration of a whole checkpoint, and the hash that `sha256sum` gives for its policy's file."""
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return {"iteration": content["iteration"], "policy_sha256": content["files"][POLICY_FILE]["sha256"]}


def batch_identity(
    config: "Config", facts: Mapping[str, object], family: "PolicyFamily", measures: Mapping[str, str]
) -> dict[str, object]:
    """What a batch of an evaluation depends on, beside the decoder that draws it.

    Settings alone would not do: a file can change under its name, and an evaluation that goes on would then
    mix images of two VQGANs, or scores of two detectors.

    Args:
        config: the run's settings.
        facts: of the evaluation, with `reference_sha256`, `captions_sha256` and `versions`.
        family: whose frozen networks decide about images.
        measures: hashes of the files that images are measured with, by name.

    Returns:
        JSON-able; batches of another identity are drawn again.
    """
    sections = ("model", "policy", "clip", "reward", "evaluation")
    return {
        **{name: asdict(getattr(config, name)) for name in sections},
        **{key: facts[key] for key in ("reference_sha256", "captions_sha256", "versions")},
        "parts": [weights_sha256(part) for part in family.frozen().values()],
        "measures": dict(measures),
        "own_code": [
            code_sha256(term.name.partition(":")[0]) for term in config.reward.parsed if term.is_function
        ],
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide about numbers."""
    installed = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
