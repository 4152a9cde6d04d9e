"""Where numbers came from: hashes of weights and code, versions of packages."""

import hashlib
import importlib.util
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dalle_ppo.runs.places import POLICY_GROUPS

if TYPE_CHECKING:
    from torch import nn

    from dalle_ppo.config.settings import Config
    from dalle_ppo.models.family import PolicyFamily

VERSIONED = ("dalle_ppo", "torch", "open_clip_torch", "numpy")
POLICY_FILES = tuple(f"{name}.safetensors" for name in POLICY_GROUPS)


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
        state: the checkpoint's state.
        sha256: hash of the reference in float32, as now loaded from `path`.
        path: the run's `model.path`; if that is another run, its newest checkpoint is loaded.

    Raises:
        ValueError: the hashes differ.
    """
    if state.get("reference_sha256", sha256) != sha256:
        raise ValueError(
            f"model.path: {path} no longer holds the weights that this run started from (was it trained "
            "further?); restore the old ones, or start a new run"
        )


def code_sha256(module_name: str) -> str | None:
    """Hash of a module's file; None if it has no file."""
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def path_sha256(path: Path) -> str:
    """Hash of a file, as by `sha256sum`, or of a folder: over its files' names and hashes, in order."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{path_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checkpoint_facts(folder: Path) -> dict[str, object]:
    """The iteration of a complete checkpoint, and the `sha256sum` of its policy file."""
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    policy = next(entry for name, entry in content["files"].items() if name in POLICY_FILES)
    return {"iteration": content["iteration"], "policy_sha256": policy["sha256"]}


def batch_identity(
    config: "Config", facts: Mapping[str, object], family: "PolicyFamily", measures: Mapping[str, str]
) -> dict[str, object]:
    """What a batch of an evaluation depends on, besides the decoder that draws it.

    Settings alone are not enough: a file can change while its name stays the same, and a resumed evaluation
    would then mix images of two VQGANs, or scores of two detectors.

    Args:
        config: the run's settings.
        facts: facts of the evaluation, with `reference_sha256`, `captions_sha256` and `versions`.
        family: its frozen networks affect the images.
        measures: hashes of the files that images are measured with, by name.

    Returns:
        JSON-able; batches with another identity are drawn again.
    """
    sections = {
        name: asdict(getattr(config, name)) for name in ("model", "policy", "clip", "reward", "evaluation")
    }
    for name in ("suite", "at_end"):  # a suite has captions of its own
        del sections["evaluation"][name]
    terms = (*config.reward.parsed, *config.evaluation.parsed_judges)
    return {
        **sections,
        **{key: facts[key] for key in ("reference_sha256", "captions_sha256", "versions")},
        "parts": [weights_sha256(part) for part in family.frozen().values()],
        "measures": dict(measures),
        "own_code": [code_sha256(term.name.partition(":")[0]) for term in terms if term.is_function],
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the numbers."""
    installed = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
