"""What a TorchScript archive's storages cost to read, and what its pickle cannot reach."""

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from dalle_ppo.models import torchscript_weights
from dalle_ppo.models.torchscript_weights import STORAGES, read_torchscript


class Views(torch.nn.Module):
    """Many tensors that share one storage."""

    def __init__(self):
        super().__init__()
        whole = torch.arange(40_000.0)
        for i in range(40):
            self.register_buffer(f"part_{i}", whole[1000 * i : 1000 * (i + 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.part_0


def saved(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(Views()), str(path))
    return path


def test_a_shared_storage_stays_shared(tmp_path):
    found = read_torchscript(saved(tmp_path / "a.pt"))
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1
    assert len(found) == 40
    for name, tensor in Views().state_dict().items():
        assert torch.equal(found[name], tensor)


def test_a_storage_is_read_once_however_often_it_is_named(tmp_path):
    """Torch names a storage once; a file of 20 MB that names it 40 times took 800 MB."""
    with zipfile.ZipFile(saved(tmp_path / "a.pt")) as archive:
        unpickler = torchscript_weights._Unpickler(archive, "a")
        floats, whole = (unpickler.find_class("torch", f"{kind}Storage") for kind in ("Float", "Int"))
        first, second = (unpickler.persistent_load(("storage", floats, "0", "cpu", 40_000)) for _ in "ab")
        assert first.data_ptr() == second.data_ptr() and len(first) == 40_000
        for kind, count in ((whole, 40_000), (floats, 20_000)):
            with pytest.raises(pickle.UnpicklingError, match="storage 0"):
                unpickler.persistent_load(("storage", kind, "0", "cpu", count))


def test_storages_have_the_numbers_that_torch_says():
    """The oracle is torch's own classes, whose use warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert {name: getattr(torch, name).dtype for name in STORAGES} == STORAGES


@pytest.mark.filterwarnings("error")
def test_reading_does_not_warn(tmp_path):
    path = saved(tmp_path / "a.pt")
    torch.storage._reset_warn_typed_storage_removal()  # it warns once only
    read_torchscript(path)


def written(path: Path, module: str, name: str) -> Path:
    """An archive that names something and gives it an attribute `mark`, which means nothing to anybody."""
    text = f"\x80\x02c{module}\n{name}\n(N}}X\x04\x00\x00\x00markI1\nstb."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", text.encode("latin-1"))
    return path


def test_what_an_archive_names_is_its_own(tmp_path):
    for module, name, shared in (
        ("torch", "FloatStorage", torch.FloatStorage),
        ("torch._utils", "_rebuild_tensor_v2", torchscript_weights._tensor),
    ):
        with pytest.raises(ValueError, match="it holds no module"):
            read_torchscript(written(tmp_path / "a.pt", module, name))
        assert not hasattr(shared, "mark")
