"""Checks that a head belongs to a CLIP, by the embeddings in the head's file rather than by names."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.nsfw import EmbeddingHead, check_clip, read_any_head, save_head
from dalle_ppo.models.heads.probes import MIN_COSINE, least_cosine, probe_images

COMMAND = "python converters/add_probes.py"
ALMOST = 0.9  # another model is far below this; the right one with a wrong setting is above
_has_offered: set[str] = set()


def bind_clip(head: EmbeddingHead, clip: ClipScorer) -> None:
    """Refuses a CLIP that does not belong to the head.

    If the head has probes, the CLIP must reproduce them. If not, names are compared: the CLIP's own, or those
    that `clip.same_as` declares. A line then says how to add probes, once for each file.

    Raises:
        ValueError: it is another CLIP, or the head does not say which one it belongs to.
    """
    if head.probes is not None:
        _check_probes(head, clip)
        return
    dimension = clip.embed_texts(["a"]).shape[1]
    check_clip(head.info, *declared_names(clip), dimension)
    if head.path is not None and str(head.path) not in _has_offered:
        _has_offered.add(str(head.path))
        line = f"{head.path} is matched to its CLIP by name only; bind it to the CLIP itself with: "
        print(line + probes_command(head.path, clip), file=sys.stderr, flush=True)


def add_probes(path: str | Path, clip: ClipScorer, out: str | Path | None = None) -> bool:
    """Adds the CLIP's embeddings of the drawings to a head's file; the layers stay as they are.

    Args:
        path: any head that `load_head` reads.
        clip: the head's CLIP, by name or by `same_as`; a head that names no CLIP gets this one's name.
        out: the `.safetensors` file to write; None replaces `path`.

    Returns:
        False if the head already has this CLIP's probes; nothing is written then.

    Raises:
        ValueError: it is another CLIP, or the file to write is not a `.safetensors` file.
    """
    path = Path(path)
    out = Path(out or path)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: only .safetensors files can hold probes; give --out NEW.safetensors")
    specs, info, probes = read_any_head(path)
    if probes is not None:
        _check_probes(EmbeddingHead(None, info, probes, path), clip)
        return False
    name, tag = declared_names(clip)
    if not info.clip_model:
        info = replace(info, clip_model=name, clip_pretrained=tag)
    found = clip.embed_images(probe_images())
    check_clip(info, name, tag, found.shape[1])
    save_head(out, specs, info, found)
    return True


def declared_names(clip: ClipScorer) -> tuple[str, str]:
    """The model and tag that `clip.same_as` declares, else the CLIP's own."""
    if clip.same_as is None:
        return clip.name, clip.pretrained
    name, _, tag = clip.same_as.partition(":")
    return name, tag


def probes_command(path: str | Path, clip: ClipScorer) -> str:
    """The command that adds this CLIP's probes to a head's file."""
    words = [str(path)]
    for name, value in clip.settings.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    if Path(path).suffix != ".safetensors":
        words += ["--out", str(Path(path).with_suffix(".safetensors"))]
    return f"{COMMAND} {shlex.join(words)}"


def _check_probes(head: EmbeddingHead, clip: ClipScorer) -> None:
    info, found = head.info, clip.embed_images(probe_images())
    who = (
        f"the head from {info.source} reads embeddings of CLIP {info.clip_model} ({info.clip_pretrained}, "
        f"{info.dimension} numbers), but the CLIP in use, {clip.name} ({clip.pretrained}),"
    )
    way_out = "use the head's CLIP or a head made for this one"
    if found.shape[1] != info.dimension:
        raise ValueError(f"{who} returns {found.shape[1]} numbers; {way_out}")
    cosine = least_cosine(head.probes, found)
    if not cosine >= MIN_COSINE:  # also where it is NaN
        hint = "; so close, fine-tuning, the activation (clip.quick_gelu) or preprocessing may be the cause"
        raise ValueError(
            f"{who} returns different ones: their cosine on the probes is {cosine:.5f} and must be at "
            f"least {MIN_COSINE}{hint if cosine > ALMOST else ''}; {way_out}"
        )
