"""Scores from an HTTP server; its settings are in `config/terms/remote.py`, an example in docs/rewards.md.

Request: {"images": [PNG in base64, ...], "captions": [text, ...], "metadata": [{"tag": ..., "id": ...}, ...]}
Answer: {"scores": [number, ...], "parts": {NAME: [number, ...]}}, one number per image; parts may be missing.
"""

from typing import Any

from torch import Tensor

from dalle_ppo.rewards.asking import api_key, in_parallel, masked, png_text, shown, to_pil
from dalle_ppo.rewards.base import Metadata, Reward, RewardFailure, RewardResult
from dalle_ppo.rewards.http_json import post
from dalle_ppo.rewards.shared import Shared


def load(options, shared: Shared) -> Reward:
    """Reads the key; the server is first asked when images are scored.

    Args:
        options: the term's settings.
        shared: not used.

    Raises:
        ValueError: the environment holds no key although the settings name one.
    """
    key = api_key(options.api_key_env)
    if options.api_key_env and key is None:
        raise ValueError(
            f"reward.terms: api_key_env of remote is {options.api_key_env}, which is not set; set it to the "
            "server's key, or api_key_env to null"
        )

    def ask(content: dict[str, list]) -> dict[str, list[float]]:
        answer = post(options.url, content, options.timeout, options.retries, key)
        return numbers_in(answer, len(content["images"]), options.url, key)

    def reward(images: Tensor, captions: list[str], metadata: Metadata) -> RewardResult:
        whole = {"images": to_pil(images), "captions": captions, "metadata": metadata}
        step = options.images_per_request
        contents = [
            {name: values[start : start + step] for name, values in whole.items()}
            for start in range(0, len(captions), step)
        ]
        for content in contents:
            content["images"] = [png_text(image) for image in content["images"]]
        answers = in_parallel(ask, contents, options.parallel)
        names = dict.fromkeys(name for answer in answers for name in answer)
        if any(len(answer) < len(names) for answer in answers):
            raise RewardFailure(
                f"{options.url} named other parts in one answer than in another: {shown([*names])}"
            )
        columns = {name: [value for answer in answers for value in answer[name]] for name in names}
        return RewardResult(columns.pop("scores"), columns)

    return reward


def numbers_in(answer: Any, num_images: int, url: str, key: str | None = None) -> dict[str, list[float]]:
    """The lists of an answer, by name; the scores come under "scores".

    Args:
        answer: what the server said.
        num_images: how many images it was shown.
        url: the server's.
        key: stands neither in an error nor in a name, whatever the server repeats.

    Raises:
        RewardFailure: one of them is not a number per image.
    """
    parts = answer.get("parts", {}) if isinstance(answer, dict) else None
    if not isinstance(parts, dict) or "scores" not in answer:
        raise RewardFailure(
            f'{url} answered {shown(answer, key)}; it must be {{"scores": [a number per image]}}'
        )
    lists = {masked(name, key): values for name, values in parts.items()} | {"scores": answer["scores"]}
    for name, values in lists.items():
        said = f"{url} answered {shown(values, key)} as {shown(name)}"
        if not isinstance(values, list):
            raise RewardFailure(f"{said}; it must be a list of {num_images} numbers")
        if len(values) != num_images:
            got = f"{len(values)} numbers as {shown(name)}"
            raise RewardFailure(f"{url} answered {got}; it must be a list of {num_images} numbers")
        if not all(isinstance(value, int | float) for value in values):
            raise RewardFailure(f"{said}; each must be a number")
    return lists
