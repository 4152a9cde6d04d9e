"""Normalising, cleaning and filtering caption text, and the prompt sets."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_ppo.captions.text import (
    CaptionFilter,
    caption_id,
    clean,
    fingerprint,
    latin_share,
    normalise,
    read_phrases,
    split_of,
)

SCOTLAND = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
ANY_TEXT = st.text(max_size=80) | st.text(alphabet="<>&;ab /é💀\u202e\u200d\x00\ud800", max_size=60)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("<a href='x'>Yale </a>Ribbon", "Yale Ribbon"),
        ("Tom &amp;amp; Jerry &lt;3 &eacute;", "Tom & Jerry <3 é"),
        ("schÃ¶n", "schön"),
        ("a\x00b\x07c\td\n e", "abc d e"),
        ("a < b > c", "a < b > c"),
        ("\u202eright\u202c to left שלום", "right to left שלום"),
        ("family 👨\u200d👩\u200d👧 ❤️", "family 👨\u200d👩\u200d👧 ❤️"),
        (f"{SCOTLAND} boat 🏴 a{SCOTLAND[1:]}", f"{SCOTLAND} boat 🏴 a"),
        ("  ", ""),
    ],
)
def test_cleaning(raw, cleaned):
    assert clean(raw) == cleaned


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_nothing_crashes_and_ids_ignore_case_and_spacing(text):
    clean(text), latin_share(text), CaptionFilter(min_latin_share=0.2).reason_to_drop(text)
    mark = fingerprint(text)
    assert len(mark.id) == 16 and 0 <= mark.split_point < 1 and mark.shard_number >= 0
    assert fingerprint(f"  {text}\n ") == mark
    assert mark.id == caption_id(text)


def test_normalising():
    assert normalise("A  Red-Boat!! 💀 (ＢＬＵＥ)") == "a red boat blue"
    assert normalise("&lt;b&gt;Boat&lt;/b&gt;<br/>x") == "boat x"
    assert normalise("STRASSE straße") == "strasse strasse"
    assert normalise("💀") == "💀" != normalise("❤️")


@pytest.mark.parametrize(
    "one, other",
    [
        ("नाव", "निव"),  # Hindi: vowels are marks
        ("ना", "नि"),
        ("เก่า", "เกา"),  # Thai: tones are
        ("கப்பல்", "கபபல"),  # Tamil
        ("x\u0302", "x"),  # no letter for both exists
    ],
)
def test_words_that_differ_in_marks_are_others(one, other):
    assert normalise(f"{one}, {one}!") == f"{one} {one}" and caption_id(one) != caption_id(other)
    assert not CaptionFilter(blocked=frozenset({normalise(other)})).reason_to_drop(one)
    assert CaptionFilter(blocked=frozenset({normalise(one)})).reason_to_drop(f"a {one}.") == "blocked"


def test_marks_after_anything_but_a_letter_are_no_words():
    assert normalise("❤️ boat 1️⃣ \u0301x") == "boat 1 x"
    assert normalise("İstanbul") == "i stanbul" and normalise("İstanbul नाव") == "i stanbul नाव"
    # the letters of version 0.1's ids: of text without marks they stay
    assert caption_id("A Red Boat, İstanbul, ÉGLISE, τῆς, が") == "36baa37638fc995e"


@pytest.mark.parametrize("text", ["İstanbul", "DİYARBAKIR, İzmir", "İstanbul नाव"])
def test_turkish_is_the_same_in_capitals(text):
    assert text.lower() != text and normalise(text) == normalise(text.lower())
    assert "नाव" not in text or normalise(text.lower()) == "i stanbul नाव"


def test_ids_of_turkish_are_those_of_version_0_1():
    assert (
        caption_id("i\u0307stanbul'da bir tekne") == caption_id("İstanbul'da bir TEKNE") == "d08e877fb4bb435c"
    )


def test_heldout_share():
    sides = [split_of(f"caption {i}", 0.1) for i in range(4000)]
    assert set(sides) == {"train", "heldout"}
    assert 310 <= sides.count("heldout") <= 490  # 400, five standard deviations are 95
    assert all(split_of(f"caption {i}", 0.0) == "train" for i in range(50))
    smaller = {i for i in range(4000) if split_of(f"caption {i}", 0.05) == "heldout"}
    assert smaller < {i for i, side in enumerate(sides) if side == "heldout"}


def test_filter_reasons():
    chosen = CaptionFilter(3, 10, 0.5, frozenset({"bad", "very worse"}), frozenset({"boat"}))
    reasons = {
        "": "empty",
        " \n": "empty",
        "ab": "short",
        "boat boat boat": "long",
        "лодка boat": "script",
        "bad boat": "blocked",
        "house": "not allowed",
        "Bad!": "blocked",
        "badboat": "not allowed",
        "BOAT": None,
        "the boat 12": "long",
        "boat 1": None,
    }
    assert {text: chosen.reason_to_drop(text) for text in reasons} == reasons
    worse = CaptionFilter(blocked=frozenset({"very worse"}))
    assert (
        worse.reason_to_drop("a Very, worse boat") == "blocked"
        and worse.reason_to_drop("every worse") is None
    )
    for wrong in ({"min_latin_share": 2.0}, {"min_chars": 9, "max_chars": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CaptionFilter(**wrong)


def test_latin_share():
    assert latin_share("é Ab") == 1 and latin_share("ab Дг") == 0.5 and latin_share("123 💀") == 0


def test_phrase_files(tmp_path):
    (tmp_path / "words.txt").write_text("# comment\n\nVery Bad\nworse\n")
    assert read_phrases(tmp_path / "words.txt") == {"very bad", "worse"}
    (tmp_path / "none.txt").write_text("# nothing\n")
    for name in ("none.txt", "absent.txt"):
        with pytest.raises(ValueError, match=name):
            read_phrases(tmp_path / name)


def listed(tmp_path, *lines):
    (tmp_path / "list.txt").write_text("\n".join(["# a list", *lines]) + "\n", encoding="utf-8")
    return read_phrases(tmp_path / "list.txt")


@pytest.mark.parametrize("line", ["🔞", "!!!", "<b>", "_"])
def test_a_phrase_without_a_word_is_refused(tmp_path, line):
    with pytest.raises(ValueError, match=r"list\.txt: line 3 is .*, which has no word"):
        listed(tmp_path, "boat", line)


@pytest.mark.parametrize(
    "line, words",
    [
        ("18+", "18"),
        ("hot girl 🔞", "hot girl"),
        ("c++ code", "c code"),
        ("<sex> toys", "toys"),
        ("b*d", "b d"),
    ],
)
def test_a_phrase_that_loses_something_is_named_with_what_is_left(tmp_path, line, words):
    with pytest.warns(UserWarning) as warned:
        assert listed(tmp_path, "boat", line) == {"boat", words}
    (warning,) = warned
    assert f"line 3, {line!r}, is read as {words!r}" in str(warning.message)


def test_many_such_phrases_cost_one_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"line 4, .*; and 2 more lines") as warned:
        listed(tmp_path, *(f"{n}+" for n in range(5)))
    assert len(warned) == 1


def test_phrases_that_lose_nothing_are_read_quietly(tmp_path):
    lines = [
        "T-shirt",
        "don't",
        "l’été",
        "foo_bar",
        "हिन्दी",
        "e\u0301te",
        " Very  Bad ",
        "ＢＬＵＥ",
        "می\u200cخواهم",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {"t shirt", "don t", "very bad", "blue"} < listed(tmp_path, *lines)
