"""The text tokenizer against the `min_dalle` package's own, and the vocabulary trainers."""

import gzip
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_ppo.models.dalle.tokenizer import (
    TextTokenizer,
    learn_merges,
    train_bpe,
    write_open_clip_bpe,
    write_vocab_files,
)

CAPTIONS_FILE = Path(__file__).parents[3] / ".." / "shared" / "captions" / "web_alt_text_5000.parquet"
TEXTS = [
    "a red boat on a blue background",
    "Red Boat, stock photo!!",
    "two boats and a tree; the boat is red",
    "banana bandana cabana banana",
    "skull 💀 and heart ❤️ on the table",
    "the tree, the tree and the boats",
] * 3


def package_tokenizer_class():
    """The package's class, read from its file: importing `min_dalle` changes torch's global settings."""
    spec = importlib.util.find_spec("min_dalle")
    if spec is None:
        pytest.skip("the min_dalle package is not installed")
    path = Path(spec.submodule_search_locations[0]) / "text_tokenizer.py"
    module_spec = importlib.util.spec_from_file_location("_min_dalle_text_tokenizer", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.TextTokenizer


@pytest.fixture(scope="module")
def web_captions():
    if not CAPTIONS_FILE.exists():
        pytest.skip("the shared captions are not here")
    import pyarrow.parquet as pq

    return pq.read_table(CAPTIONS_FILE, columns=["TEXT"]).column("TEXT").to_pylist()


@pytest.fixture(scope="module")
def small_bpe():
    return train_bpe(TEXTS, 60)


def test_ids_equal_the_package_on_web_captions(web_captions):
    vocab, merges = train_bpe(web_captions[::5], 300)
    ours, package = TextTokenizer(vocab, merges), package_tokenizer_class()(vocab, merges)
    for caption in web_captions:
        assert ours.tokenize(caption) == package.tokenize(caption), caption


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet="abnd \n❤💀é.", max_size=80))
def test_ids_equal_the_package_on_any_text(small_bpe, text):
    vocab, merges = small_bpe
    assert TextTokenizer(vocab, merges).tokenize(text) == package_tokenizer_class()(vocab, merges).tokenize(
        text
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_ids_equal_the_package_under_arbitrary_merges(data):
    """Merges no trainer would make: overlapping, duplicated, unreachable, equal products."""
    piece = st.text(alphabet="ab", min_size=1, max_size=3)
    merges = data.draw(st.lists(st.tuples(piece, piece).map(" ".join), max_size=12))
    entries = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", *(m.replace(" ", "") for m in merges)]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    text = data.draw(st.text(alphabet="ab ", max_size=30))
    assert TextTokenizer(vocab, merges).tokenize(text) == package_tokenizer_class()(vocab, merges).tokenize(
        text
    )


def test_rows_are_padded_and_long_captions_keep_their_end(small_bpe):
    tokenizer = TextTokenizer(*small_bpe)
    encoded = tokenizer.encode(["", "a boat", "boat " * 100, "x" * 62])
    assert encoded.tokens.shape == (4, 64) and encoded.tokens.dtype == torch.int64
    assert encoded.num_truncated == 2  # 62 characters, their word start, begin and end are 65
    assert ((encoded.tokens == 2).sum(1) == 1).all() and (encoded.tokens[:, 0] == 0).all()
    assert (
        encoded.tokens[2, 63] == 2
        and encoded.tokens[2, :63].tolist() == tokenizer.tokenize("boat " * 100)[:63]
    )
    assert encoded.tokens[0].tolist() == tokenizer.unconditional().tolist() == [0, 2] + [1] * 62
    assert tokenizer.encode(["x" * 61]).num_truncated == 0
    assert tokenizer.encode([]).tokens.shape == (0, 64)


def test_a_long_word_is_fast_and_right(small_bpe):
    """The package would take hours here; a word made of whole merges has a known answer."""
    vocab, _ = small_bpe
    tokenizer = TextTokenizer({**dict.fromkeys(vocab, 3), **vocab, "zz": len(vocab)}, ["z z"])
    ids = tokenizer.tokenize("z" * 200_001)
    assert ids[2:-1].count(len(vocab)) == 100_000 and len(ids) == 100_004


def test_files_round_trip_and_are_the_packages_layout(tmp_path, small_bpe):
    vocab, merges = small_bpe
    write_vocab_files(vocab, merges, tmp_path / "vocab.json", tmp_path / "merges.txt")
    lines = (tmp_path / "merges.txt").read_text(encoding="utf8").split("\n")[1:-1]  # as min_dalle reads it
    assert lines == merges
    read = TextTokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert read.tokenize(TEXTS[0]) == TextTokenizer(vocab, merges).tokenize(TEXTS[0])
    (tmp_path / "vocab.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"vocab\.json"):
        TextTokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")


@pytest.mark.parametrize(
    "name, spoil, words",
    [
        ("merges", lambda text: text[:-3], "does not end with a line break, so it is cut short"),
        ("merges", lambda text: text.rstrip("\n"), "does not end with a line break, so it is cut short"),
        ("merges", lambda text: "", "does not end with a line break, so it is cut short"),
        ("merges", lambda text: text + "b\n", "line 4 is 'b', expected two subwords"),
        ("merges", lambda text: text + "\n", "line 4 is '', expected two subwords"),
        ("merges", lambda text: text + "a b c\n", "line 4 is 'a b c', expected two subwords"),
        ("merges", lambda text: text + "b a\n", "line 4, 'b a', makes a subword that the vocabulary lacks"),
        ("vocab", lambda text: text.replace("5", "5.0"), "'b' has id 5.0, expected an integer"),
        ("vocab", lambda text: text.replace("5", '"5"'), "'b' has id '5', expected an integer"),
        ("vocab", lambda text: text.replace("5", "null"), "'b' has id None, expected an integer"),
        ("vocab", lambda text: text.replace("5", "true"), "'b' has id True, expected an integer"),
        ("vocab", lambda text: text.replace("5", "-5"), "'b' has id -5, expected an integer of 0 or more"),
        ("vocab", lambda text: "[1]", "holds a list, expected an object"),
        ("vocab", lambda text: text[:-9], "cannot be read"),
        ("merges", lambda text: text[: -len("a ab\n")], "makes 1 of the vocabulary's 2 subwords"),
        ("vocab", lambda text: text.replace('"<s>": 0, ', ""), "no entry for <s>"),
    ],
)
def test_files_that_are_cut_or_wrong_cost_one_line(name, spoil, words, tmp_path):
    files = {"vocab": tmp_path / "vocab.json", "merges": tmp_path / "merges.txt"}
    files["vocab"].write_text(
        '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6, "aab": 7}'
    )
    files["merges"].write_text("#version: 0.2\na b\na ab\n")
    assert TextTokenizer.from_files(*files.values()).tokenize("ab aab")[1:-1] == [3, 6, 3, 7]
    files[name].write_text(spoil(files[name].read_text()))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        TextTokenizer.from_files(*files.values())
    assert str(files[name]) in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_merges_file_would_give_other_ids(small_bpe, tmp_path):
    """Why it is refused: read as the package reads it, it loads."""
    vocab, merges = small_bpe
    half = "\n".join(["#version: 0.2", *merges, ""])[:150]
    read = package_tokenizer_class()(vocab, half.split("\n")[1:-1])
    assert read.tokenize(TEXTS[0]) != TextTokenizer(vocab, merges).tokenize(TEXTS[0])


def test_missing_special_token_is_named():
    with pytest.raises(ValueError, match="<unk>"):
        TextTokenizer({"<s>": 0, "<pad>": 1, "</s>": 2}, [])


def test_trained_vocabulary_layout(small_bpe):
    vocab, merges = small_bpe
    assert [vocab[t] for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert sorted(vocab.values()) == list(range(len(vocab))) and chr(288) in vocab
    assert all(chr(c).lower() in vocab for c in range(33, 127))
    tokenizer = TextTokenizer(vocab, merges)
    assert len(tokenizer.tokenize("boat")) == 3  # a frequent word is one token
    assert 3 not in tokenizer.tokenize("Anything at ALL: {~}|^`")
    assert train_bpe(list(TEXTS), 60) == (vocab, merges)


def test_merges_are_the_most_frequent_pairs():
    """The worked example of the paper (low, lower, newest, widest)."""
    words = {(*"low_",): 5, (*"lower_",): 2, (*"newest_",): 6, (*"widest_",): 3}
    merges = learn_merges(words, 6)
    # e s (9), es t (9), est _ (9), l o (7), lo w (7), then n e, w est_ or ew (6)
    assert merges[:5] == [("e", "s"), ("es", "t"), ("est", "_"), ("l", "o"), ("lo", "w")]


def test_open_clip_reads_the_small_vocabulary(tmp_path):
    from open_clip.tokenizer import SimpleTokenizer

    size = write_open_clip_bpe(tmp_path / "a.txt.gz", TEXTS, 40)
    assert write_open_clip_bpe(tmp_path / "b.txt.gz", TEXTS, 40) == size
    assert (tmp_path / "a.txt.gz").read_bytes() == (tmp_path / "b.txt.gz").read_bytes()
    assert (tmp_path / "a.txt.gz").read_bytes()[4:8] == bytes(4)  # gzip's time stamp
    tokenizer = SimpleTokenizer(bpe_path=str(tmp_path / "a.txt.gz"), context_length=16)
    num_merges = len(gzip.decompress((tmp_path / "a.txt.gz").read_bytes()).decode().split("\n")) - 1
    assert tokenizer.vocab_size == size == 512 + num_merges + 2
    assert (tokenizer.sot_token_id, tokenizer.eot_token_id) == (size - 2, size - 1)
    ids = tokenizer(["A red BOAT on a blue background", "日本 💀"])
    assert ids.max() == size - 1 and len(tokenizer.encode("boat")) == 1
    assert tokenizer.decode(tokenizer.encode("a red boat 💀")).strip() == "a red boat 💀"


def test_no_two_merges_make_the_same_subword():
    """`a|bc` and `ab|c` would be two entries of one name; open_clip's end token would lie past its table."""
    words = dict.fromkeys([(*"abc",), (*"abcx",), (*"yabc",)], 5)
    words |= {(*"aby",): 9, (*"zbc",): 4, (*"qa", "bc"): 3}
    products = ["".join(pair) for pair in learn_merges(words, 50, min_count=1)]
    assert "abc" in products and len(set(products)) == len(products)
