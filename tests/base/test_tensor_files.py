"""safetensors files, damaged ones and disks that fail."""

import errno
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dalle_ppo.base.tensor_files import read_tensor_file, save_tensors
from dalle_ppo.models.dalle.weights import save_weights

TENSORS = {"a": torch.arange(30_000.0)}


@contextmanager
def files_of_at_most(size: int):
    """A disk that takes no more than some bytes of a file; the error is not "no space", but comes as late."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensors_and_metadata_are_kept(tmp_path):
    save_tensors(TENSORS, tmp_path / "a.safetensors", {"format": "1"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "1"}
        assert torch.equal(file.get_tensor("a"), TENSORS["a"])


def test_tensors_are_read_and_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    assert torch.equal(read_tensor_file(path)["a"], TENSORS["a"])
    for content in (b"", path.read_bytes()[:-1], b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^\S*a\.safetensors: cannot be read as tensors .*$"):
            read_tensor_file(path)


@pytest.mark.parametrize("writer", [save_file, save_tensors])
def test_a_disk_that_is_full_is_an_oserror(writer, tmp_path):
    """With `save_file` it is not, which is why there is `save_tensors`."""
    expected = OSError if writer is save_tensors else SafetensorError
    with files_of_at_most(10_000), pytest.raises(expected) as caught:
        writer(TENSORS, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    if writer is save_tensors:
        assert caught.value.errno == errno.EFBIG and caught.value.filename.endswith("a.safetensors")
    assert issubclass(SafetensorError, OSError) is False


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        save_tensors(TENSORS, tmp_path / "gone" / "a.safetensors")


def test_a_mistake_of_ours_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="share memory"):
        save_tensors({"a": TENSORS["a"], "b": TENSORS["a"]}, tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_weights_on_a_full_disk_are_an_oserror_in_both_formats(name, tmp_path):
    network = torch.nn.Linear(100, 300)
    with files_of_at_most(10_000), pytest.raises(OSError, match=name):
        save_weights(network, tmp_path / name)
