"""Turns text into token ids for DALL·E mini and Mega, and trains small vocabularies in the same layouts."""

import gzip
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from emoji import demojize
from torch import Tensor

from dalle_ppo.base.one_line import one_line

WORD_START = chr(ord(" ") + 256)
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MERGES_HEADER = "#version: 0.2"
WORD_CACHE_SIZE = 1 << 16
# Largest share of entries that no merge makes: published vocabularies have a few, such as <mask>.
MAX_UNMADE = 0.05


@dataclass(frozen=True)
class TextTokens:
    """Encoded captions.

    tokens: int64 [B, text_token_count], padded with the pad id; every row begins with `<s>` and
        holds one `</s>`.
    num_truncated: how many of the captions were too long and lost words.
    """

    tokens: Tensor
    num_truncated: int


class TextTokenizer:
    """Byte pair encoding of the published DALL·E mini and Mega vocabularies: the ids of `min_dalle` 0.4.11.

    Source: https://github.com/kuprel/min-dalle/blob/main/min_dalle/text_tokenizer.py
    Differs: merging a word of n characters takes O(n log n) steps instead of O(n^2), words are cached, and a
    caption that is too long keeps its end token.

    Args:
        vocab: subword to id; must hold `<s>`, `<pad>`, `</s>` and `<unk>`.
        merges: lines of two subwords; earlier ones take precedence.
        text_token_count: tokens per row, begin and end included.

    Raises:
        ValueError: a special token is missing, or a row has no room for begin and end.
    """

    def __init__(self, vocab: dict[str, int], merges: list[str], text_token_count: int = 64):
        _check_special(vocab, "vocab")
        if text_token_count < 2:
            raise ValueError(
                f"text_token_count: {text_token_count} leaves no room for <s> and </s>; use at least 2"
            )
        self.vocab = vocab
        self.text_token_count = text_token_count
        self.begin_id, self.pad_id, self.end_id, self.unknown_id = (vocab[token] for token in SPECIAL_TOKENS)
        self._rank = {tuple(line.split()): rank for rank, line in enumerate(merges)}
        # An instance's own cache, so that tokenizers with different vocabularies never share words.
        self._word_ids = lru_cache(maxsize=WORD_CACHE_SIZE)(self._encode_word)

    @classmethod
    def from_files(
        cls, vocab_json: str | Path, merges_txt: str | Path, text_token_count: int = 64
    ) -> "TextTokenizer":
        """Read `vocab.json` and `merges.txt` (a header line, then one merge per line, then a line break).

        Raises:
            ValueError: a file is absent, cut short or not such a vocabulary; names it.
        """
        try:
            vocab = json.loads(_read_text(vocab_json))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{vocab_json}: cannot be read ({one_line(error)}); fetch it again") from error
        text = _read_text(merges_txt)
        _check_vocab(vocab, vocab_json)
        _check_merges(text, vocab, merges_txt)
        return cls(vocab, text.split("\n")[1:-1], text_token_count)

    @property
    def vocab_size(self) -> int:
        """Rows an embedding needs: one more than the largest id that a caption can turn into.

        Published vocabularies have entries that no merge makes, such as `<mask>`: mini's lists 50 265 ids,
        one more than its encoder has rows (https://github.com/kuprel/min-dalle/issues/93).
        """
        products = ("".join(pair) for pair in self._rank)
        single = (entry for entry in self.vocab if len(entry) == 1)
        reached = {*SPECIAL_TOKENS, *single, *products}
        return max(self.vocab[entry] for entry in reached if entry in self.vocab) + 1

    def tokenize(self, caption: str) -> list[int]:
        """Ids of one caption with begin and end token, neither cut nor padded."""
        words = normalise(caption).split(" ")
        ids = [token for word in words if word for token in self._word_ids(word)]
        return [self.begin_id, *ids, self.end_id]

    def encode(self, captions: Sequence[str]) -> TextTokens:
        """Encode captions into rows of equal length.

        Args:
            captions: B texts of any length and script; an empty one becomes `<s></s>`.

        Returns:
            TextTokens with `tokens` int64 [B, text_token_count].
        """
        length = self.text_token_count
        rows, num_truncated = [], 0
        for caption in captions:
            row = self.tokenize(caption)
            if len(row) > length:
                num_truncated += 1
                row = [*row[: length - 1], self.end_id]
            rows.append(row + [self.pad_id] * (length - len(row)))
        tokens = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)
        return TextTokens(tokens, num_truncated)

    def unconditional(self) -> Tensor:
        """The caption of the unconditional branch, `<s></s>` padded: int64 [text_token_count]."""
        return self.encode([""]).tokens[0]

    def _encode_word(self, word: str) -> tuple[int, ...]:
        subwords = merge_word([WORD_START, *word], self._rank)
        return tuple(self.vocab.get(subword, self.unknown_id) for subword in subwords)


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); fetch it again") from error


def _check_special(vocab: dict[str, int], where: str | Path) -> None:
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise ValueError(
            f"{where}: no entry for {', '.join(missing)}; it is not a vocabulary like DALL·E mini's"
        )


def _check_vocab(vocab: object, path: str | Path) -> None:
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: holds a {type(vocab).__name__}, expected an object from subword to id")
    for subword, number in vocab.items():
        # type(), as True is an int to isinstance.
        if type(number) is not int or number < 0:
            raise ValueError(f"{path}: {subword!r} has id {number!r}, expected an integer of 0 or more")
    _check_special(vocab, path)


def _check_merges(text: str, vocab: dict[str, int], path: str | Path) -> None:
    """Half a file would load as well as a whole one, but give different ids."""
    if not text.endswith("\n"):
        raise ValueError(f"{path}: does not end with a line break, so it is cut short; fetch it again")
    for number, line in enumerate(text.split("\n")[1:-1], start=2):
        symbols = line.split()
        if len(symbols) != 2:
            raise ValueError(f"{path}: line {number} is {line!r}, expected two subwords to merge")
        if "".join(symbols) not in vocab:
            raise ValueError(
                f"{path}: line {number}, {line!r}, makes a subword that the vocabulary lacks; the two files "
                "do not belong together"
            )
    made = {"".join(line.split()) for line in text.split("\n")[1:-1]}
    joined = [entry for entry in vocab if len(entry) > 1 and entry not in SPECIAL_TOKENS]
    unmade = sum(entry not in made for entry in joined)
    if unmade > MAX_UNMADE * len(joined):
        raise ValueError(
            f"{path}: makes {len(joined) - unmade} of the vocabulary's {len(joined)} subwords, so it is cut "
            "short or another vocabulary's; fetch it again"
        )


def normalise(caption: str) -> str:
    """Replaces emoji by their names and keeps lower-case ASCII only, as the published models were trained."""
    if not caption.isascii():
        caption = demojize(caption, delimiters=("", ""))
    return caption.lower().encode("ascii", errors="ignore").decode()


def merge_word(symbols: list[str], rank: dict[tuple[str, ...], int]) -> list[str]:
    """Apply merges to one word: always the strongest pair present, the leftmost if it occurs twice.

    Args:
        symbols: the word's characters (not changed).
        rank: strength of each pair, lower is stronger.

    Returns:
        The subwords that remain, in order.
    """
    parts: list[str | None] = list(symbols)
    end = len(parts)
    following = list(range(1, end + 1))
    preceding = list(range(-1, end - 1))
    queue: list[tuple[int, int, str, str]] = []

    def push(left: int, right: int) -> None:
        if left >= 0 and right < end:
            pair = (parts[left], parts[right])
            if pair in rank:
                heapq.heappush(queue, (rank[pair], left, *pair))

    for i in range(end - 1):
        push(i, i + 1)
    while queue:
        _, left, first, second = heapq.heappop(queue)
        right = following[left]
        if parts[left] != first or right >= end or parts[right] != second:
            continue  # one of the two has been merged with another neighbour since
        parts[left], parts[right] = first + second, None
        following[left] = following[right]
        if following[right] < end:
            preceding[following[right]] = left
        push(preceding[left], left)
        push(left, following[left])
    return [part for part in parts if part is not None]


def learn_merges(
    words: dict[tuple[str, ...], int], num_merges: int, min_count: int = 2
) -> list[tuple[str, str]]:
    """Learn byte pair merges: repeatedly the most frequent pair, ties broken alphabetically.

    Source: https://arxiv.org/abs/1508.07909, algorithm 1.
    Differs: a pair whose product another pair already makes is skipped, so that every merge is one new
    entry of the vocabulary.

    Args:
        words: each distinct word as a tuple of symbols, and how often it occurs.
        num_merges: the most merges to learn; fewer are returned if no pair occurs `min_count` times.
    """
    segmented, counts = [list(word) for word in words], list(words.values())
    pair_count: Counter[tuple[str, str]] = Counter()
    words_with: dict[tuple[str, str], set[int]] = defaultdict(set)
    known = {symbol for word in segmented for symbol in word}

    def tally(index: int, sign: int) -> None:
        for pair in zip(segmented[index], segmented[index][1:], strict=False):
            pair_count[pair] += sign * counts[index]
            words_with[pair].add(index)

    for index in range(len(segmented)):
        tally(index, +1)
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        candidates = [(-count, pair) for pair, count in pair_count.items() if count >= min_count]
        best = min((c for c in candidates if "".join(c[1]) not in known), default=None)
        if best is None:
            break
        pair = best[1]
        merges.append(pair)
        known.add("".join(pair))
        for index in words_with.pop(pair):
            tally(index, -1)
            segmented[index] = _join_pair(segmented[index], pair)
            tally(index, +1)
    return merges


def _join_pair(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            joined.append(pair[0] + pair[1])
            i += 2
        else:
            joined.append(symbols[i])
            i += 1
    return joined


def train_bpe(texts: Iterable[str], num_merges: int, min_count: int = 2) -> tuple[dict[str, int], list[str]]:
    """Train a vocabulary in DALL·E mini's layout: special tokens, characters, merges.

    Args:
        texts: captions; they are normalised as `TextTokenizer` does.
        num_merges: the most merges to learn.

    Returns:
        (vocab, merges) as `TextTokenizer` takes them. All printable ASCII is in the vocabulary.
    """
    # Any white space splits here, as a merges file cannot contain a white-space character.
    counts = Counter(word for text in texts for word in normalise(text).split())
    merges = learn_merges(
        {(WORD_START, *word): count for word, count in counts.items()}, num_merges, min_count
    )
    printable = {chr(code) for code in range(ord("!"), ord("~") + 1)}
    characters = sorted({c.lower() for c in printable} | {c for word in counts for c in word})
    entries = [*SPECIAL_TOKENS, *characters, WORD_START, *("".join(pair) for pair in merges)]
    return {entry: i for i, entry in enumerate(entries)}, [" ".join(pair) for pair in merges]


def write_vocab_files(
    vocab: dict[str, int], merges: list[str], vocab_json: str | Path, merges_txt: str | Path
) -> None:
    """Write the two files that `TextTokenizer.from_files` and the `min_dalle` package read."""
    Path(vocab_json).write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf8")
    Path(merges_txt).write_text("\n".join([MERGES_HEADER, *merges, ""]), encoding="utf8")


def write_open_clip_bpe(path: str | Path, texts: Iterable[str], num_merges: int, min_count: int = 2) -> int:
    """Train a small vocabulary for CLIP's text tower and write open_clip's gzip file, reproducibly.

    Args:
        path: file to write; `open_clip.tokenizer.SimpleTokenizer(bpe_path=path)` reads it.
        texts: captions to learn from, cleaned and split as open_clip does.
        num_merges: the most merges to learn.

    Returns:
        `vocab_size` of the tokenizer: 512 byte symbols, the merges, begin and end token.
    """
    from open_clip.tokenizer import SimpleTokenizer

    reader = SimpleTokenizer()
    counts = Counter(word for text in texts for word in reader.pat.findall(reader.clean_fn(text)))
    words: Counter[tuple[str, ...]] = Counter()
    for word, count in counts.items():
        symbols = [reader.byte_encoder[byte] for byte in word.encode("utf8")]
        words[*symbols[:-1], symbols[-1] + "</w>"] += count
    merges = learn_merges(words, num_merges, min_count)
    # No line break at the end: open_clip would count the empty line as a merge.
    content = "\n".join([MERGES_HEADER, *(" ".join(pair) for pair in merges)]).encode("utf8")
    Path(path).write_bytes(gzip.compress(content, mtime=0))
    return 512 + len(merges) + 2
