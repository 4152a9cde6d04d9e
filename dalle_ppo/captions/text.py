"""The text of a caption: cleaning, the stable hash behind ids and splits, filters."""

import hashlib
import html
import re
import unicodedata
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from dalle_ppo.base.one_line import one_line

SPLITS = ("train", "heldout")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,2000}>|<!--.*?-->", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
_LAST_WITHOUT_MARKS = "\u02ff"
_NO_MARK = re.compile("[\u0307\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""The dot that Turkish \u0130 has in lower case, as in ids of version 0.1, and the variants of emoji."""
_FLAG = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]{3,6}\U000e007f)")
"""A flag such as Scotland's: a black flag, its letters as tags, and the tag that ends them."""
_PLAIN = re.compile(r"[ -%'-;=?-~]*")  # printable ASCII without & < >
_JOINING = ("Pc", "Pd", "Cf", "Mn", "Mc", "Me")  # _ and hyphens, joiners, marks such as Hindi's vowels
# Zero-width joiners hold emoji together; non-joiners are part of Persian spelling.
_KEPT_FORMAT_CHARACTERS = "\u200c\u200d"


@dataclass(frozen=True)
class Fingerprint:
    """What the hash of a normalised text decides; the same on every machine and in every process.

    id: 16 hexadecimal digits, the caption's name.
    split_point: number in [0, 1) that decides between training and held-out captions.
    shard_number: non-negative integer whose remainder decides which process draws the caption.
    """

    id: str
    split_point: float
    shard_number: int

    def split(self, heldout_share: float) -> str:
        """'heldout' for about `heldout_share` of all texts, else 'train'."""
        return "heldout" if self.split_point < heldout_share else "train"


def normalise(text: str) -> str:
    """The words of a text, lower-case and single-spaced, without HTML, punctuation, emoji or width variants.

    Texts with equal results count as the same caption in ids, splits and duplicates. A text without any word
    (only emoji) keeps its characters.
    """
    plain = strip_markup(text)
    words = _words(unicodedata.normalize("NFKC", plain))
    return " ".join(words) if words else " ".join(plain.split())


def _words(text: str) -> list[str]:
    """The words of a text, in lower case. Marks belong to the word that they follow, as Hindi's vowels do."""
    if text.isascii() or not any(map(_is_mark, text)):
        return _WORD.findall(text.casefold())
    words: list[str] = []
    for word in "".join(c if c.isalnum() or _is_mark(c) else " " for c in text).split():
        if not any(map(_is_mark, word)):
            words += _WORD.findall(word.casefold())  # as in a text without marks
        elif any(map(str.isalnum, word)):
            first = next(at for at, c in enumerate(word) if c.isalnum())
            words.append(word[first:].casefold())
    return words


def _is_mark(c: str) -> bool:
    """Whether a character is a mark that tells words apart."""
    return c > _LAST_WITHOUT_MARKS and unicodedata.category(c) in ("Mn", "Mc") and not _NO_MARK.match(c)


def fingerprint(text: str) -> Fingerprint:
    """Hash a caption by its normalised text."""
    digest = hashlib.blake2b(normalise(text).encode("utf8", errors="replace"), digest_size=24).digest()
    split_point = int.from_bytes(digest[8:14], "big") / 2**48
    return Fingerprint(digest[:8].hex(), split_point, int.from_bytes(digest[16:], "big"))


def caption_id(text: str) -> str:
    """A caption's stable name: 16 hexadecimal digits of the hash of its normalised text."""
    return fingerprint(text).id


def split_of(text: str, heldout_share: float = 0.1) -> str:
    """'train' or 'heldout', by the hash of the normalised text: duplicates are always on the same side."""
    return fingerprint(text).split(heldout_share)


def strip_markup(text: str) -> str:
    """Decodes entities (twice, because web data is often escaped twice) and replaces tags with spaces."""
    if "&" not in text and "<" not in text:
        return text
    return _TAG.sub(" ", html.unescape(html.unescape(text)))


def clean(text: str) -> str:
    """What `clean: true` does to a caption.

    It repairs mojibake, decodes entities, removes tags, control characters and direction marks, and collapses
    white space. Emoji, accents and right-to-left letters stay.
    """
    if _PLAIN.fullmatch(text):
        return " ".join(text.split())
    import ftfy

    parts = _FLAG.split(strip_markup(ftfy.fix_text(text)))  # every second one is a flag
    kept = (part if at % 2 else _without_controls(part) for at, part in enumerate(parts))
    return " ".join("".join(kept).split())


def _without_controls(text: str) -> str:
    """A text without control characters, direction marks and the like; white space becomes spaces."""
    return "".join(
        " " if c.isspace() else c
        for c in text
        if c.isspace()
        or c in _KEPT_FORMAT_CHARACTERS
        or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")
    )


@dataclass(frozen=True)
class CaptionFilter:
    """Which captions are drawn.

    min_chars, max_chars: inclusive bounds on the length in characters.
    min_latin_share: smallest share of Latin letters among the letters; 0 admits every script, and texts
        without letters.
    blocked, allowed: phrases, each normalised; a caption that contains a blocked one is dropped, and if there
        are allowed ones, a caption must contain one of them. Phrases match whole words.
    """

    min_chars: int = 1
    max_chars: int = 2000
    min_latin_share: float = 0.0
    blocked: frozenset[str] = field(default=frozenset(), repr=False)
    allowed: frozenset[str] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.min_latin_share <= 1:
            raise ValueError(
                f"captions.min_latin_share is {self.min_latin_share}; it must lie between 0 and 1"
            )
        if self.min_chars > self.max_chars:
            raise ValueError(
                f"captions.min_chars is {self.min_chars}; it must be at most captions.max_chars = "
                f"{self.max_chars}, or no caption is left"
            )

    def reason_to_drop(self, text: str) -> str | None:
        """Why a caption is dropped: 'empty', 'short', 'long', 'script', 'blocked', 'not allowed'; or None."""
        if not text or text.isspace():
            return "empty"
        if len(text) < self.min_chars:
            return "short"
        if len(text) > self.max_chars:
            return "long"
        if self.min_latin_share > 0 and latin_share(text) < self.min_latin_share:
            return "script"
        if self.blocked or self.allowed:
            words = normalise(text)
            if _names_phrase(words, self.blocked):
                return "blocked"
            if self.allowed and not _names_phrase(words, self.allowed):
                return "not allowed"
        return None


def latin_share(text: str) -> float:
    """Share of Latin letters among a text's letters; 0 for a text without letters."""
    letters = [c for c in text if c.isalpha()]
    latin = sum(c.isascii() or unicodedata.name(c, "").startswith("LATIN") for c in letters)
    return latin / len(letters) if letters else 0.0


def read_phrases(path: str | Path) -> frozenset[str]:
    """Read a blocklist or allowlist: one phrase per line; blank lines and lines starting with # are skipped.

    Captions are compared by their words, so phrases are too: a warning names those that lose something.

    Raises:
        ValueError: the file cannot be read or contains no phrase, or a line has no word.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a list of phrases ({one_line(error)})") from error
    phrases, reduced = set(), []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = normalise(line)
        if not _WORD.search(words):
            raise ValueError(
                f"{path}: line {number} is {line.strip()!r}, which has no word; captions are compared by "
                "words, without punctuation and emoji, so write words or leave it out"
            )
        phrases.add(words)
        if _loses_meaning(line):
            reduced.append(f"line {number}, {line.strip()!r}, is read as {words!r}")
    if not phrases:
        raise ValueError(f"{path}: contains no phrase; write one per line or leave the list out")
    if reduced:
        more = f"; and {len(reduced) - 3} more lines" if len(reduced) > 3 else ""
        warnings.warn(
            f"{path}: {'; '.join(reduced[:3])}{more}: captions are compared without punctuation and emoji",
            stacklevel=2,
        )
    return frozenset(phrases)


def _loses_meaning(phrase: str) -> bool:
    """Whether normalising removes more than spaces, what joins words, and accents written separately."""
    rest = _WORD.sub("", unicodedata.normalize("NFKC", phrase))
    return strip_markup(phrase) != phrase or any(
        not c.isspace()
        and c not in "'\N{RIGHT SINGLE QUOTATION MARK}"
        and unicodedata.category(c) not in _JOINING
        for c in rest
    )


def _names_phrase(words: str, phrases: frozenset[str]) -> bool:
    if not phrases.isdisjoint(words.split(" ")):
        return True
    padded = f" {words} "
    return any(" " in phrase and f" {phrase} " in padded for phrase in phrases)
