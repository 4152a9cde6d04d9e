"""`python -m dalle_ppo.pretrain`: mistakes in a folder of photos are told before any photo is encoded."""

import json

import pytest
from PIL import Image

from dalle_ppo import pretrain
from dalle_ppo.iconworld.making import scene_tokens


def photos(folder, texts: list):
    folder.mkdir()
    for i in range(len(texts)):
        Image.new("RGB", (40, 50), (i, 0, 0)).save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    "texts, words",
    [
        (
            [["a boat", "a red boat"], ["a cat"]],
            "the text of 0.png is ['a boat', 'a red boat'], read as list",
        ),
        ([None, 7], "the text of 1.png is 7, read as int"),
        ([{"en": "a boat"}, {"en": "a cat"}], "the text of 0.png is {'en': 'a boat'}, read as dict"),
        (["a boat", ["a cat"]], "changed from string to array in row 1"),
    ],
)
def test_a_text_that_is_no_caption_is_told_first(texts, words, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(scene_tokens, "image_tokens", lambda *_: pytest.fail("a photo was encoded"))
    arguments = ("--data", photos(tmp_path / "photos", texts), "--out", tmp_path / "new", "--device", "cpu")
    outcome = cli(pretrain.main, *arguments)
    assert outcome.code == 2 and words in outcome.error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name, content", [("jsonl", ""), ("jsonl", "\n\n"), ("csv", "file_name,text\n")])
def test_metadata_without_rows_is_one_line(name, content, tmp_path, cli):
    folder = photos(tmp_path / "photos", ["a boat"])
    (folder / "metadata.jsonl").unlink()
    (folder / f"metadata.{name}").write_text(content)
    outcome = cli(pretrain.main, "--data", folder, "--out", tmp_path / "new", "--device", "cpu")
    assert outcome.code == 2 and "metadata.jsonl or .csv has no rows" in outcome.error


def test_a_missing_text_is_the_empty_caption(tmp_path):
    rows, texts = pretrain.read_photos(str(photos(tmp_path / "photos", ["a boat", None, ""])))
    assert texts == ["a boat", "", ""] and len(rows) == 3


@pytest.mark.parametrize("option", [("--tags", "UNLIKELY"), ("--num_pairs", "10"), ("--num_pairs", "20000")])
def test_options_of_the_built_in_scenes_are_refused_for_a_folder(option, tmp_path, cli):
    folder = photos(tmp_path / "photos", ["a boat"])
    outcome = cli(pretrain.main, "--data", folder, "--out", tmp_path / "new", "--num_steps", 1, *option)
    assert outcome.code == 2 and f"leave {option[0]} out" in outcome.error and str(folder) in outcome.error
