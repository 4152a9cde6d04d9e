"""Errors of libraries are quoted briefly, whatever the file put into them."""

import json
import zipfile

import pytest

from dalle_ppo.base.one_line import one_line
from dalle_ppo.models.heads.keras.convert import convert
from dalle_ppo.models.torchscript_weights import read_torchscript


def test_type_and_message_in_one_short_line():
    assert one_line(KeyError("a\n  b")) == "KeyError: 'a\\n b'"
    assert one_line(ValueError("two\n lines")) == "ValueError: two lines"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(OSError("x" * 5000))) == 200


def test_a_damaged_zip_does_not_print_itself(tmp_path):
    """zipfile quotes the name in the header, whose length a damaged file gives as it likes."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps({"name": "x" * 9000}))
    content = bytearray(path.read_bytes())
    content[26:28] = (8000).to_bytes(2, "little")  # the length of the first name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged") as refused:
        convert(path, tmp_path / "out.safetensors")
    assert len(str(refused.value)) < 500 + len(str(path))


def test_nor_does_a_torchscript_archive(tmp_path):
    path = tmp_path / "clip.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/data.pkl", "x" * 9000)
    content = bytearray(path.read_bytes())
    content[26:28] = (8000).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a TorchScript archive") as refused:
        read_torchscript(path)
    assert len(str(refused.value)) < 500 + len(str(path))
