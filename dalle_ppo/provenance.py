"""What numbers came from: hashes of weights and code, versions of packages."""

import hashlib
import importlib.util
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

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


def code_sha256(module_name: str) -> str | None:
    """Hash of a module's file; None where it has none."""
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def checkpoint_facts(folder: Path) -> dict[str, object]:
    """The iteration of a whole checkpoint, and the hash that `sha256sum` gives for its policy's file."""
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return {"iteration": content["iteration"], "policy_sha256": content["files"][POLICY_FILE]["sha256"]}


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide about numbers."""
    installed = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
