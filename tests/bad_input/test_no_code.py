"""No code runs from a file that may come from a stranger."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from parsing import refused, write

from dalle_ppo import align, evaluate, generate, train
from dalle_ppo.config import command_line
from dalle_ppo.config.command_line import load_config
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.clip_files import read_weight_file
from dalle_ppo.models.torchscript_weights import read_torchscript

MODULE = "planted_module"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module that can be imported; `planted()` tells whether it was."""
    (tmp_path / f"{MODULE}.py").write_text(
        "def reward(images, captions): return images.mean(dim=(1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return lambda: MODULE in sys.modules


SETTINGS = [
    f"model: {{class_path: {MODULE}.reward}}\n",
    f"actor: {{class_path: {MODULE}.reward, init_args: {{trainable: all}}}}\n",
    f"evaluation: {{heldout_clip: {{class_path: {MODULE}.reward}}}}\n",
    f"evaluation: {{heldout_clip: {MODULE}.reward}}\n",
    f"evaluation.heldout_clip: {MODULE}.reward\n",
    f"model: {MODULE}.reward\n",
    f"seed: !!python/name:{MODULE}.reward\n",
    f"objective: {MODULE}\n",
    f"captions: {{source: '{MODULE}:x', where: 1}}\n",
]


@pytest.mark.parametrize("text", SETTINGS)
def test_no_key_of_a_config_imports_a_module(text, tmp_path, planted):
    refused("--config", write(tmp_path, text))
    assert not planted()


def test_jsonargparse_imports_what_a_class_path_names(tmp_path, planted):
    """Why configs are checked before they are parsed; if this fails, that is no longer needed."""
    parser = command_line._make_parser("test", "", {})
    with pytest.raises(Exception, match="class_path"):
        parser.parse_args(["--config", write(tmp_path, SETTINGS[0])])
    assert planted()


def user_code(folder: Path, section: str) -> Path:
    entry = f"[{{name: '{MODULE}:reward', weight: 1}}]"
    text = (
        f"reward: {{terms: {entry}}}\n" if section == "reward.terms" else f"evaluation: {{judges: {entry}}}\n"
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(f"format: 2\n{text}")
    return folder / "config.yaml"


@pytest.mark.parametrize("section", ["reward.terms", "evaluation.judges"])
def test_no_user_code_refuses_functions_everywhere(section, tmp_path, planted, cli):
    file = user_code(tmp_path / "run", section)
    load_config(file)  # may be read without the flag, which imports nothing yet
    calls = [
        (train, ["--config", file, "--run_dir", tmp_path / "new"]),
        (train, ["--run_dir", file.parent, "--resume"]),
        (align, ["--config", file, "--run_dir", tmp_path / "new"]),
        (evaluate, [file.parent]),
        (generate, ["a boat", "--model", file.parent, "--out", tmp_path / "a.png"]),
    ]
    for program, arguments in calls:
        outcome = cli(program.main, *arguments, "--no_user_code")
        assert outcome.code == 2
        assert f"{section} names the function {MODULE}:reward, which --no_user_code refuses" in outcome.error
    assert not planted()
    assert {path.name for path in tmp_path.iterdir()} == {f"{MODULE}.py", "run"}


class Writes(torch.nn.Module):
    """An archive whose loading writes a file, harmlessly, where the test says."""

    def __init__(self, target: str):
        super().__init__()
        self.weight, self.target = torch.nn.Parameter(torch.ones(2)), target

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.target, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.target, self.training = state[1], state[2]
        self.weight = torch.from_file(state[1], True, 4, dtype=torch.float32).fill_(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_torchscript_archive_cannot_write_files(tmp_path):
    target, archive = tmp_path / "written", tmp_path / "clip.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Writes(str(target))).save(archive)
        with pytest.raises(ValueError, match=r"clip\.pt is not a TorchScript archive of weights"):
            read_weight_file(archive)
        assert not target.exists()
        torch.jit.load(archive)
    assert target.exists(), "torch.jit.load is harmless now: the reader of our own is no longer needed"


class Nested(torch.nn.Module):
    """Modules, a buffer, a shared tensor, a view, an empty tensor, and a tensor that is no weight."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        self.same = self.inner[0]
        self.register_buffer("turned", torch.arange(6).reshape(2, 3).T)
        self.register_buffer("nothing", torch.empty(0, 3))
        self.loose = torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.loose.sum()


@pytest.mark.filterwarnings("ignore")
def test_weights_of_an_archive_are_those_that_torch_reads(tmp_path):
    torch.jit.trace(Nested().eval().half().float(), torch.ones(2, 3)).save(tmp_path / "a.pt")
    expected = torch.jit.load(tmp_path / "a.pt").state_dict()
    found = read_torchscript(tmp_path / "a.pt")
    assert set(found) == set(expected) and "loose" not in found
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_a_clip_folder_cannot_bring_its_own_tokenizer_code(tmp_path, planted):
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "patch_size": 8},
        "text_cfg": {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ValueError, match="tokenizer_kwargs sets trust_remote_code, which can run code"):
        load_clip(str(tmp_path), None)
