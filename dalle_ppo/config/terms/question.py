"""Settings of the reward term `question`."""

import re
from dataclasses import dataclass
from string import Formatter

from dalle_ppo.config.service import VisionSettings


@dataclass(frozen=True)
class Settings(VisionSettings):
    """A model answers a question about each image; the score is 1 for the right answer and 0 for a wrong
    one."""

    ask: str = "Does this image show {caption}? Answer yes or no."
    """The question. {caption} is the caption; other names in braces are groups of `pattern`."""
    answer: str | bool | int = "yes"
    """The right answer: yes, no, a number, or a word that the answer must hold. It may use the same names."""
    pattern: str | None = None
    """A regular expression with named groups, searched for in each caption, such as "(?P<number>[a-z]+)
    (?P<noun>[a-z]+)". Captions score 0 without being asked about if it does not match, or if a group
    that the answer names matches nothing."""
    report_letters: bool = True
    """Also ask whether the image shows letters or digits, and report it as the part `letters`. This doubles
    the requests. A gate such as only_if: "letters < 0.5" then gives nothing for images with writing."""
    max_unreadable: float = 0.5
    """An answer that is not the yes, no or number asked for counts as wrong. If more than this share of a
    batch is like that, the reward counts as failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.answer, bool):  # as YAML reads yes and no
            object.__setattr__(self, "answer", "yes" if self.answer else "no")
        object.__setattr__(self, "answer", str(self.answer))
        if not re.search(r"[^\W_]", self.answer):
            raise ValueError(f"answer of question is {self.answer!r}; give yes, no, a number or a word")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is {self.max_unreadable}; it must lie between 0 and 1")
        groups = set()
        if self.pattern is not None:
            try:
                groups = set(re.compile(self.pattern).groupindex)
            except re.error as error:
                raise ValueError(
                    f"pattern of question is {self.pattern!r}, not a regular expression: {error}"
                ) from None
        for setting in ("ask", "answer"):
            self._check_names(setting, groups | {"caption"})

    def _check_names(self, setting: str, known: set[str]) -> None:
        text = getattr(self, setting)
        try:
            named = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ValueError(f"{setting} of question is {text!r}: {error}; write {{{{ for a brace") from None
        if named - known:
            raise ValueError(
                f"{setting} of question names {{{min(named - known)}}}, which is neither caption nor a group "
                "of pattern; write a group as (?P<NAME>...)"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """Letters can be gated only where they are asked for."""
        return ("question", "letters") if self.report_letters else ("question",)
