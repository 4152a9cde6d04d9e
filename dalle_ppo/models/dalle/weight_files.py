"""Finds the weight files of DALL·E mini and Mega: in folders of either of two layouts, or on the hub.

Source: https://github.com/kuprel/min-dalle/blob/main/min_dalle/min_dalle.py names the files and the hub
    repository.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

HUB_REPO = "kuprel/min-dalle"
# A branch, not a commit: no source at hand records the repository's commits, and a wrong one would load
# nothing. `WeightFiles.commit` says which one it led to, and a run keeps that as its `model.revision`.
HUB_REVISION = "main"

HUB_NAMES = {
    "mini": {
        "encoder": "encoder_mini.pt",
        "decoder": "decoder_mini.pt",
        "detoker": "detoker.pt",
        "vocab": "vocab_mini.json",
        "merges": "merges_mini.txt",
    },
    "mega": {
        "encoder": "encoder.pt",
        "decoder": "decoder.pt",
        "detoker": "detoker.pt",
        "vocab": "vocab.json",
        "merges": "merges.txt",
    },
}
PUBLISHED = tuple(HUB_NAMES)
# Next to the VQGAN's decoder if a conversion of the original checkpoints put it there; the hub has none.
VQGAN_ENCODER = "vqgan_encoder.safetensors"
# Settings of the policy that an export came from, next to its weights.
SETTINGS_FILE = "policy_settings.json"


def disk_names(preset: str) -> dict[str, str]:
    """Maps parts to paths, as the `min-dalle` package keeps its files under `models_root`."""
    folder = f"dalle_bart_{preset}"
    return {
        "encoder": f"{folder}/encoder.pt",
        "decoder": f"{folder}/decoder.pt",
        "detoker": "vqgan/detoker.pt",
        "vocab": f"{folder}/vocab.json",
        "merges": f"{folder}/merges.txt",
    }


@dataclass(frozen=True)
class WeightFiles:
    """The files of one model; weights are `.pt` or `.safetensors`.

    Args:
        preset: "mini" or "mega".
        encoder: text encoder.
        decoder: image-token decoder.
        detoker: the decoder half of the VQGAN.
        vocab: the text tokenizer's vocabulary.
        merges: the text tokenizer's merges.
        settings: policy settings next to them; None for published weights.
        commit: commit of the hub's repository; None for files of a folder.
        vqgan_encoder: the encoder half of the VQGAN; None if there is none, as on the hub.
    """

    preset: str
    encoder: Path
    decoder: Path
    detoker: Path
    vocab: Path
    merges: Path
    settings: Path | None = None
    commit: str | None = None
    vqgan_encoder: Path | None = None


def find_weight_files(path: str | Path) -> WeightFiles | None:
    """Looks for a model in a local folder.

    Args:
        path: a folder in the hub's or the package's layout. If it holds both models, FOLDER/mini or
            FOLDER/mega names one.

    Returns:
        Its files, or None if the folder holds no model.

    Raises:
        ValueError: a file is missing, or the folder holds both models and none is named.
    """
    folder, presets = _folder_and_presets(Path(path))
    found = [
        (preset, names)
        for preset in presets
        for names in (HUB_NAMES[preset], disk_names(preset))
        if any(_existing(folder / names[part]) for part in ("encoder", "decoder"))
    ]
    if not found:
        return None
    if len({preset for preset, _ in found}) > 1:
        raise ValueError(f"{folder} holds mini and Mega; name one of them as {folder}/mini or {folder}/mega")
    preset, names = next((f for f in found if not _missing(folder, f[1])), found[0])
    if missing := _missing(folder, names):
        raise ValueError(
            f"{folder} lacks {', '.join(missing)} of DALL·E {preset}; the whole set is "
            f"{', '.join(names.values())} (weights also as .safetensors)"
        )
    paths = {part: _existing(folder / name) for part, name in names.items()}
    settings, vqgan_encoder = folder / SETTINGS_FILE, paths["detoker"].parent / VQGAN_ENCODER
    return WeightFiles(
        preset,
        **paths,
        settings=settings if settings.is_file() else None,
        vqgan_encoder=vqgan_encoder if vqgan_encoder.is_file() else None,
    )


def _folder_and_presets(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder to look in, and for which models: FOLDER/dalle_bart_mini and FOLDER/mini name one."""
    preset = path.name.removeprefix("dalle_bart_")
    if preset in PUBLISHED and (path.name != preset or not path.exists()):
        return path.parent, (preset,)
    return path, PUBLISHED


def _existing(path: Path) -> Path | None:
    """The file, or the safetensors file in its place."""
    candidates = [path, path.with_suffix(".safetensors")] if path.suffix == ".pt" else [path]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _missing(folder: Path, names: dict[str, str]) -> list[str]:
    return [name for name in names.values() if _existing(folder / name) is None]


def download(preset: str, revision: str | None = None) -> WeightFiles:
    """Takes a published model from the hub's cache, or fetches it from the hub.

    A cached model is used as it is, without a connection, even if the branch has moved since.

    Args:
        preset: "mini" or "mega".
        revision: commit, tag or branch of the repository; default `HUB_REVISION`.

    Returns:
        Files in `huggingface_hub`'s cache, and their commit. HF_HUB_OFFLINE and HF_HOME are
        honoured.

    Raises:
        ValueError: there is no connection and no copy, or the hub refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision = revision or HUB_REVISION
    try:
        return _fetch(preset, revision, only_cached=True)
    except LocalEntryNotFoundError:
        pass
    try:
        # Asked once, without the retries of a download, so that a missing connection shows at once.
        get_hf_file_metadata(hf_hub_url(HUB_REPO, HUB_NAMES[preset]["vocab"], revision=revision))
        return _fetch(preset, revision, only_cached=False)
    except Exception as error:  # whatever makes a download fail, the user needs one line
        raise ValueError(_explain_download(preset, revision, error)) from error


def _fetch(preset: str, revision: str, only_cached: bool) -> WeightFiles:
    from huggingface_hub import hf_hub_download

    files: dict[str, Path] = {}
    for part, name in sorted(HUB_NAMES[preset].items(), reverse=True):  # the small ones first
        files[part] = Path(hf_hub_download(HUB_REPO, name, revision=revision, local_files_only=only_cached))
        # A branch may move between two files; all of them come from the first one's commit.
        revision = files[part].parent.name
    print(f"DALL·E {preset}: {HUB_REPO} at {revision}", file=sys.stderr)
    return WeightFiles(preset, **files, commit=revision)


def _explain_download(preset: str, revision: str, error: Exception) -> str:
    """Says in one line why a model could not be loaded and what to do about it."""
    from huggingface_hub import constants, errors

    where = f"DALL·E {preset} ({HUB_REPO} at {revision})"
    absent = f"{where} is not complete in the cache {constants.HF_HUB_CACHE}"
    way_out = "or give a folder that holds its files as the model's path"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if constants.HF_HUB_OFFLINE:
        return f"{absent} and HF_HUB_OFFLINE is set; unset it for the first download, {way_out}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no {HUB_REPO} at {revision}; check model.revision, {way_out}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return f"the hub refused {where} with HTTP status {status}; log in with `hf auth login`, {way_out}"
    return f"{absent} and could not be fetched from the hub ({reason}); connect and try again, {way_out}"
