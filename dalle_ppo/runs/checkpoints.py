"""Checkpoints of a run: written atomically, verified when read, exact when resumed."""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.base.atomic import flush
from dalle_ppo.base.one_line import one_line
from dalle_ppo.base.run_format import FORMAT, FormatError, check_format
from dalle_ppo.base.tensor_files import read_tensor_file, save_tensors
from dalle_ppo.runs.places import CHECKPOINT_NAME, TEMPORARY_NAME
from dalle_ppo.runs.space import bytes_of, check_space

STATE_FILE = "state.json"
# What peft's loader reads beside `adapter_model.safetensors`; a copy of the state's entry, which is verified.
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config", "adapter_config.json"
FILE_NAME = re.compile(r"\w[\w.-]*\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint folder holds.

    iteration: number of iterations completed when it was written.
    tensors: tensors on the CPU, by file name without suffix.
    state: everything else, JSON-able (counters, random states, data position).
    """

    iteration: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    run_dir: str | Path,
    iteration: int,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    keep: int,
    spare: int = 0,
) -> Path:
    """Write `checkpoints/step_ITERATION/`, then remove the oldest until `keep` complete ones are left.

    The folder is written under a temporary name next to its final place, flushed to disk and renamed. If this
    is interrupted, the new checkpoint is either complete or absent, and the earlier ones are unchanged.

    Args:
        tensors: tensors by NAME; each group becomes `NAME.safetensors`.
        state: becomes `state.json`; what JSON changes (int keys, tuples) comes back changed. If its `best`
            names an `iteration`, that checkpoint is kept too.
        keep: number of checkpoints to keep, at least 1.
        spare: how many to keep beyond these, as in `prune_checkpoints`.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: the disk has no room for it; nothing has been written.
        OSError: it cannot be written; earlier checkpoints are unchanged.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} would remove the checkpoint just written; use at least 1")
    parent = Path(run_dir) / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    put_back(parent)
    _remove_leftovers(parent)
    check_space(parent, bytes_of(tensors))
    final = parent / f"step_{iteration:06d}"
    temporary = parent / f".{final.name}.new"
    try:
        temporary.mkdir()
        _write_files(temporary, iteration, tensors, state)
        _put_in_place(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    prune_checkpoints(run_dir, iteration, keep, spare)
    return final


def latest_checkpoint(run_dir: str | Path, *names: str) -> Path | None:
    """The newest complete checkpoint of a run, or None.

    Args:
        run_dir: the run's folder.
        names: groups of tensors to verify, as in `load_checkpoint`; for other files only existence and length
            are checked.

    Incomplete and damaged folders are skipped, each with a warning that names the faulty file.

    Raises:
        FormatError: a checkpoint has another format.
    """
    for _, folder in sorted(checkpoint_folders(Path(run_dir) / "checkpoints"), reverse=True):
        try:
            _read_manifest(folder, names)
        except FormatError:
            raise
        except ValueError as error:
            warnings.warn(f"checkpoint ignored: {error}", stacklevel=2)
        else:
            return folder
    return None


def load_checkpoint(path: str | Path, *names: str) -> Checkpoint:
    """Read one checkpoint folder; every file read is checked against its recorded hash.

    Args:
        path: the checkpoint's folder.
        names: groups of tensors to read, such as "policy" (drawing needs neither the critic nor the
            optimisers, which are several times as large); none means all.

    Raises:
        ValueError: the folder is absent, incomplete or damaged; the message names the file.
    """
    folder = Path(path)
    manifest = _read_manifest(folder, names)
    files = [file for file in manifest["files"] if not names or Path(file).stem in names]
    tensors = {Path(file).stem: read_tensor_file(folder / file) for file in files}
    return Checkpoint(manifest["iteration"], tensors, manifest["state"])


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors for a safetensors file and a JSON-able rest.

    Returns:
        (tensors, meta): tensors are named `INDEX.NAME` by the parameter's index, e.g. `3.exp_avg`, and
            `INDEX.NAME.INNER` where an optimiser keeps them in a dict, as that with 8 bits does.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif isinstance(value, dict):
                # All parameters share a table of 256 values (`qmap1`), but a file holds no tensor twice.
                inner = {n: t.clone() if t.numel() <= 256 else t for n, t in value.items()}
                tensors |= {f"{index}.{name}.{n}": t for n, t in inner.items()}
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    """Restore what `flatten_optimizer` saved into an optimiser over the same parameters.

    Raises:
        ValueError: the parameters do not match those of the saved optimiser.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = sum(len(group["params"]) for group in meta["param_groups"])
    if saved != len(parameters):
        raise ValueError(
            f"the checkpoint's optimiser has {saved} parameters, the current one {len(parameters)}; resume "
            "with the run's own actor.trainable and model"
        )
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in meta["plain"].items()}
    for key, value in tensors.items():
        index, name, *inner = key.split(".")
        entries = state.setdefault(int(index), {})
        if inner:
            entries.setdefault(name, {})[inner[0]] = value
            continue
        entries[name] = value
        if int(index) >= len(parameters) or (value.ndim and value.shape != parameters[int(index)].shape):
            raise ValueError(
                f"optimiser state {key} of shape {list(value.shape)} does not fit any parameter; "
                "the model differs from the one this checkpoint was made with"
            )
    groups = [
        # JSON turns the betas into a list, but optimisers expect a tuple.
        {name: tuple(v) if isinstance(v, list) and name != "params" else v for name, v in group.items()}
        for group in meta["param_groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def get_rng_state() -> dict[str, Any]:
    """The process's random states (Python, numpy, torch on CPU and every GPU), JSON-able."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [keys.tolist(), position, has_gauss, gauss],
        "torch": encode_bytes(torch.get_rng_state()),
        "cuda": [encode_bytes(state) for state in cuda],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `get_rng_state` saved; warns if the number of GPUs has changed."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(decode_bytes(state["torch"]))
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != num_gpus:
        warnings.warn(
            f"the checkpoint holds random states of {len(state['cuda'])} GPUs, this machine has {num_gpus}: "
            "numbers drawn on a GPU will not continue exactly",
            stacklevel=2,
        )
    for device, encoded in enumerate(state["cuda"][:num_gpus]):
        torch.cuda.set_rng_state(decode_bytes(encoded), device)


def encode_bytes(tensor: Tensor) -> str:
    """A uint8 tensor (such as `torch.Generator().get_state()`) as base64 text."""
    return base64.b64encode(tensor.cpu().numpy().tobytes()).decode("ascii")


def decode_bytes(text: str) -> Tensor:
    """The uint8 tensor that `encode_bytes` was given."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _write_files(folder: Path, iteration: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    files = {}
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        save_tensors(_own_memory(group), path)
        flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
    if ADAPTER_CONFIG in state:
        path = folder / ADAPTER_FILE
        path.write_text(json.dumps(state[ADAPTER_CONFIG], indent=1), encoding="utf8")
        flush(path)
    content = {"format": FORMAT, "iteration": iteration, "files": files, "state": state}
    content = json.loads(json.dumps(content))  # as a reader will see it: keys are text, tuples are lists
    content["sha256"] = _content_hash(content)
    path = folder / STATE_FILE
    path.write_text(json.dumps(content), encoding="utf8")
    flush(path)
    flush(folder)


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that do not share memory, as safetensors requires."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return owned


def _read_manifest(folder: Path, names: Sequence[str] = (), verify_hashes: bool = True) -> dict[str, Any]:
    """Parse `state.json` and check the files it lists; the ValueError names the first faulty one.

    Hashes are checked for the groups in `names` (for all groups if there are none), lengths for all files.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise ValueError(f"{path}: missing, so {folder} is not a complete checkpoint; use an earlier one")
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        recorded = content.pop("sha256")
        version, files = content["format"], content["files"]
        _check_kinds(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({one_line(error)}); use an earlier one") from error
    if recorded != _content_hash(content):
        raise ValueError(f"{path}: its content does not match its hash; use an earlier checkpoint")
    check_format(version, path)
    for name, expected in files.items():
        file = folder / name
        if not FILE_NAME.fullmatch(name):
            raise ValueError(
                f"{path}: lists {name[:80]!r}, not a checkpoint's file: refused; use another one"
            )
        if not file.is_file():
            raise ValueError(f"{file}: missing; use an earlier checkpoint")
        if file.stat().st_size != expected["bytes"]:
            raise ValueError(
                f"{file}: {file.stat().st_size} bytes, expected {expected['bytes']}; use an earlier one"
            )
        wanted = not names or Path(name).stem in names
        if verify_hashes and wanted and _file_hash(file) != expected["sha256"]:
            raise ValueError(f"{file}: its content does not match its hash; use an earlier checkpoint")
    return content


def _check_kinds(content: dict[str, Any]) -> None:
    """Raises TypeError or KeyError unless a manifest holds what it should, as far as this module reads it.

    Another format is for `check_format` to refuse.
    """
    if content["format"] != FORMAT:
        return
    sizes = [(entry["bytes"], entry["sha256"]) for entry in content["files"].values()]
    if not all(type(size) is int and isinstance(digest, str) for size, digest in sizes):
        raise TypeError("a file's size or hash is of the wrong type")
    if type(content["iteration"]) is not int or content["iteration"] < 0:
        raise TypeError(f"iteration is {str(content['iteration'])[:40]}, not a whole number")
    if not isinstance(content["state"], dict):
        raise TypeError("state is no mapping")


def checkpoint_folders(parent: Path) -> list[tuple[int, Path]]:
    """(iteration, folder) of every checkpoint in a run's `checkpoints`, complete or not, unordered."""
    entries = parent.iterdir() if parent.is_dir() else []
    matches = [(CHECKPOINT_NAME.fullmatch(entry.name), entry) for entry in entries]
    return [(int(match[1]), entry) for match, entry in matches if match and entry.is_dir()]


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename into place; an existing folder is moved aside first, as a rename cannot replace it."""
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        os.replace(final, aside)
    try:
        os.replace(temporary, final)
    except OSError:
        if aside.exists():
            os.replace(aside, final)
        raise
    flush(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def prune_checkpoints(run_dir: str | Path, iteration: int, keep: int, spare: int = 0) -> None:
    """Remove all but the newest complete checkpoints up to `iteration`; damaged ones stay.

    Args:
        run_dir: the run's folder.
        iteration: of the newest checkpoint.
        keep: how many stay. The one that the newest calls the best stays too.
        spare: how many of the newest may turn out to be bad: so many more stay, and the best before them.
    """
    whole, named = [], []
    for number, folder in sorted(checkpoint_folders(Path(run_dir) / "checkpoints")):
        try:
            manifest = _read_manifest(folder, verify_hashes=False)
        except ValueError:
            continue
        if number <= iteration:
            whole.append((number, folder))
            named.append((manifest["state"].get("best") or {}).get("iteration"))
    best = named[-1 - spare :]
    for number, folder in whole[: -keep - spare]:
        if number in best:
            continue
        # Renamed first, so that an interrupted removal does not leave a partial checkpoint.
        aside = folder.with_name(f".{folder.name}.old")
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def put_back(parent: Path) -> None:
    """Undoes a replacement that ended between its two renames: the checkpoint gets its name again."""
    for aside in parent.glob(".step_*.old"):
        final = aside.with_name(aside.name.removeprefix(".").removesuffix(".old"))
        if final.exists():
            continue
        try:
            _read_manifest(aside)
        except ValueError:  # half of it has been removed
            continue
        os.replace(aside, final)


def _remove_leftovers(parent: Path) -> None:
    for entry in parent.iterdir():
        if TEMPORARY_NAME.fullmatch(entry.name):
            shutil.rmtree(entry)


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf8")).hexdigest()
