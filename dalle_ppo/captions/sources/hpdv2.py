"""`hpdv2:FOLDER`: the benchmark prompts of HPDv2, a JSON list for each style, as its authors publish them."""

import json
import os
from pathlib import Path

from dalle_ppo.captions.shards import TableShard
from dalle_ppo.captions.source import CaptionRequest, CaptionSource

STYLES = ("anime", "concept-art", "paintings", "photo")
"""The styles of the benchmark, 800 prompts each; each is the name of a file and the tag of its prompts."""


def load(path: str, request: CaptionRequest) -> CaptionSource:
    """The prompts of the benchmark; their styles are the tags.

    Args:
        path: the folder with anime.json, concept-art.json, paintings.json and photo.json, or one such file.
        request: what is asked of the source.

    Raises:
        ValueError: a style is missing, a file is not a list of texts, or columns are asked for.

    Source: https://github.com/tgxs002/HPSv2, whose `benchmark_prompts` reads these files.
    """
    request.refuse_columns(f"hpdv2:{path}")
    place = Path(os.path.expanduser(path))
    files = [place] if place.is_file() else [place / f"{style}.json" for style in STYLES]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"captions.source: hpdv2:{path} lacks {', '.join(missing)}; name the folder `benchmark` of "
            f"HPDv2, with {', '.join(f'{style}.json' for style in STYLES)}, or one of these files"
        )
    prompts = {file: _prompts(file) for file in files}
    return request.draw_from(
        [TableShard(str(file), texts, [file.stem] * len(texts)) for file, texts in prompts.items()]
    )


def _prompts(file: Path) -> list[str]:
    """The texts in a JSON list.

    Raises:
        ValueError: the file holds anything else.
    """
    try:
        texts = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{file}: is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{file}: must be a list of prompts, as in HPDv2's benchmark; for rows with keys, such as "
            f"HPDv2's test.json, give captions.source {file} and captions.column prompt"
        )
    return texts
