"""Questions with known answers about images; the term's settings are in `config/terms/question.py`.

Beware of typographic attacks: a policy may learn to write the answer into the picture, which models that see
believe; in DDPO's counting task it did (https://arxiv.org/abs/2305.13301). The part `letters` shows it.
"""

import re
from decimal import Decimal

import torch
from torch import Tensor

from dalle_ppo.rewards.asking import api_key, shown, to_pil
from dalle_ppo.rewards.base import Reward, RewardFailure, RewardResult
from dalle_ppo.rewards.shared import Shared
from dalle_ppo.rewards.vision import load_vision

LETTERS = "Is any text, letter or digit written in this image? Answer yes or no."
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
# Commas between thousands belong to a number, and so does a point before digits.
WORD = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|[^\W_]+(?:[.,]\d+)?")
NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
WORD_TO_NUMBER = {word: number for number, word in enumerate(NUMBERS)} | {"none": 0}


def load(options, shared: Shared) -> Reward:
    """Loads the model that answers, or connects to it.

    Args:
        options: the term's settings.
        shared: says on which device.

    Raises:
        ValueError: a package is missing, or the model cannot be loaded.
    """
    ask = load_vision(options, shared.device, "question")

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        pictures, asked = to_pil(images), [filled(options, caption) for caption in captions]
        rows = [i for i, pair in enumerate(asked) if pair is not None]
        questions = [asked[i][0] for i in rows]
        about, extra = [pictures[i] for i in rows], len(pictures) if options.report_letters else 0
        answers = ask([*about, *pictures[:extra]], [*questions, *[LETTERS] * extra])
        own, of_letters = answers[: len(rows)], answers[len(rows) :]
        right = [is_right(answer, asked[i][1]) for i, answer in zip(rows, own, strict=True)]
        letters = [is_right(answer, "yes") for answer in of_letters]
        for read, texts in ((right, own), (letters, of_letters)):
            _check_readable(read, texts, options)
        parts = {"question": torch.zeros(len(captions))}
        parts["question"][rows] = torch.tensor([float(found or 0) for found in right])
        if options.report_letters:
            parts["letters"] = torch.tensor([float(found or 0) for found in letters])
        return RewardResult(parts["question"], parts)

    return reward


def filled(options, caption: str) -> tuple[str, str] | None:
    """Question and right answer for a caption; None if it lacks the pattern or the answer."""
    names = {"caption": caption}
    if options.pattern is not None:
        match = re.search(options.pattern, caption)
        if match is None:
            return None
        names |= {name: text or "" for name, text in match.groupdict().items()}
    answer = options.answer.format_map(names)
    return (options.ask.format_map(names), answer) if WORD.search(answer) else None


def is_right(answer: str, expected: str) -> bool | None:
    """Whether an answer says what is expected; None if it cannot be read.

    Yes or no must come first in the answer. A number, in digits (1,000 or 2.5) or words up to twenty, must be
    the only one in it. Any other word must occur; nothing is right if none is expected.
    """
    expected = expected.strip().lower()
    words = WORD.findall(answer.lower())
    if expected in ("yes", "no"):
        return words[0] == expected if words and words[0] in ("yes", "no") else None
    number = _number(expected)
    if number is None:
        wanted = WORD.findall(expected)
        return bool(wanted) and any(words[i : i + len(wanted)] == wanted for i in range(len(words)))
    said = {found for word in words if (found := _number(word)) is not None}
    return said == {number} if len(said) == 1 else None


def _number(word: str) -> Decimal | int | None:
    return Decimal(word.replace(",", "")) if NUMBER.fullmatch(word) else WORD_TO_NUMBER.get(word)


def _check_readable(read: list[bool | None], answers: list[str], options) -> None:
    unreadable = [answer for answer, found in zip(answers, read, strict=True) if found is None]
    if len(unreadable) > options.max_unreadable * len(answers):
        example = shown(unreadable[0], api_key(options.api_key_env), length=80)
        raise RewardFailure(
            f"{len(unreadable)} of {len(answers)} answers of {options.model} cannot be read, such as "
            f"{example!r}; ask for yes, no or one number, or raise max_unreadable"
        )
