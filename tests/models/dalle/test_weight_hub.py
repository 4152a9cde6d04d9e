"""Published weights from the hub: the real client against a small server on this machine."""

import io
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from published_models import LAYOUTS, MEGA, MINI, random_published, reduce_presets, write_published

from dalle_ppo import generate, train
from dalle_ppo.build import trainer as build
from dalle_ppo.build.models import load_model, pinned
from dalle_ppo.build.trainer import build_trainer
from dalle_ppo.config.command_line import to_yaml
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.models.dalle.weight_files import download, find_weight_files

COMMIT, LATER = "a" * 40, "b" * 40
CPU = torch.device("cpu")


class Hub:
    """Serves a folder as kuprel/min-dalle; every answer is `refusal` if that is set.

    Attributes:
        refusal: (status, the hub's X-Error-Code).
        commit: that branches stand at.
        requests: "METHOD revision file".
    """

    def __init__(self, folder: Path):
        self.folder, self.requests = folder, []
        self.refusal: tuple[int, str] | None = None
        self.commit = COMMIT
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self)

            do_GET = do_HEAD

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        prefix, _, rest = handler.path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        self.requests.append(f"{handler.command} {revision} {name}")
        content = b""
        if self.refusal is not None:
            handler.send_response(self.refusal[0])
            handler.send_header("X-Error-Code", self.refusal[1])
        elif prefix != "/kuprel/min-dalle":
            handler.send_response(404)
        else:
            content = (self.folder / name).read_bytes()
            handler.send_response(200)
            handler.send_header("X-Repo-Commit", revision if len(revision) == 40 else self.commit)
            handler.send_header("ETag", f'"{name}"')
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)

    def files_sent(self) -> list[str]:
        parts = [request.split(" ") for request in self.requests]
        return [name for method, _, name in parts if method == "GET" and name]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_published(folder, random_published(MINI), "hub", "mini")
    return write_published(folder, random_published(MEGA), "hub", "mega")


@pytest.fixture
def hub(weights, tmp_path, monkeypatch):
    reduce_presets(monkeypatch)
    hub = Hub(weights)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.mark.parametrize("preset", ["mini", "mega"])
def test_a_model_is_fetched_once_and_then_taken_from_the_cache(preset, hub, monkeypatch, capsys):
    first = load_model(preset, CPU)
    assert first.files.preset == preset and first.files.commit == COMMIT and first.world is None
    assert f"kuprel/min-dalle at {COMMIT}" in capsys.readouterr().err
    assert sorted(hub.files_sent()) == sorted(LAYOUTS["hub", preset])
    hub.requests.clear()
    hub.commit = LATER
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        again = load_model(preset, CPU)
        assert again.files == first.files and hub.requests == []
    for name, value in first.decoder.state_dict().items():
        assert torch.equal(value, again.decoder.state_dict()[name])


def test_an_interrupted_download_goes_on(hub):
    files = download("mini")
    for path in (files.decoder.resolve(), files.decoder):
        path.unlink()
    hub.requests.clear()
    load_model("mini", CPU)
    assert hub.files_sent() == ["decoder_mini.pt"]


def test_all_files_are_of_one_commit(hub):
    """The branch moves after the first file."""
    answer = hub.answer

    def moving(handler):
        answer(handler)
        if handler.command == "GET":
            hub.commit = LATER

    hub.answer = moving
    files = download("mini")
    assert {path.parent.name for path in (files.encoder, files.decoder, files.vocab, files.merges)} == {
        COMMIT
    }


def test_a_pinned_revision_is_what_is_fetched(hub):
    files = download("mini", LATER)
    assert files.decoder.parent.name == files.commit == LATER
    assert all(f" {LATER} " in request for request in hub.requests)


def test_a_run_goes_on_with_the_commit_it_began_with(hub, tmp_path, monkeypatch):
    """The branch moves, and the cache is another machine's: every later step loads as this does."""
    monkeypatch.setattr(build, "build_reward", lambda *arguments: None)
    run_dir = tmp_path / "run"
    config = Config(model=ModelConfig("mini"), evaluation=EvaluationConfig(num_captions=2))
    trainer = build_trainer(config, run_dir)
    assert trainer.config.model == ModelConfig("mini", COMMIT)
    trainer.save()
    (run_dir / "config.yaml").write_text(to_yaml(trainer.config), encoding="utf-8")
    hub.commit = LATER
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert load_model(str(run_dir), CPU).files.commit == COMMIT
    assert hub.requests and all(f" {COMMIT} " in request for request in hub.requests)
    assert load_model("mini", CPU).files.commit == LATER


def test_resuming_with_the_file_of_the_start_keeps_the_commit(tmp_path):
    (tmp_path / "config.yaml").write_text(f"format: 2\nmodel: {{path: mini, revision: {COMMIT}}}\n")
    start = tmp_path / "start.yaml"
    start.write_text("model: {path: mini, revision: null}\n")

    def revision(*argv: str) -> str | None:
        return train.resumed_settings(tmp_path, ["--resume", *argv])[0].model.revision

    assert revision() == revision("--config", str(start)) == COMMIT
    assert revision("--config", str(start), "--model.revision", LATER) == LATER
    assert revision("--model.path", "mega", "--model.revision", "null") is None


def test_files_of_a_folder_are_of_no_commit(hub, weights):
    files = find_weight_files(weights / "mini")
    assert files.commit is None
    config = Config(model=ModelConfig(str(weights / "mini")))
    assert pinned(config, files) == pinned(config, None) == config


class Terminal(io.StringIO):
    """Standard error of somebody who looks at it; bars are for them."""

    def isatty(self) -> bool:
        return True


def test_each_file_has_a_progress_bar(hub, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    download("mini")
    shown = sys.stderr.getvalue()
    for name in LAYOUTS["hub", "mini"]:
        assert re.search(rf"{re.escape(name)}: +100%\|[#\u2588]+\|", shown), shown


def test_the_revision_is_a_setting(hub, tmp_path, cli):
    """It reaches the hub from both command lines; training then stops at the detector."""
    arguments = ("a boat", "--out", tmp_path / "a.png", "--model", "mini", "--num_images", "1")
    hub.refusal = (404, "RevisionNotFound")
    assert f"at {LATER}; check model.revision" in cli(generate.main, *arguments, "--revision", LATER).error
    run = ("--run_dir", str(tmp_path / "run"), "--model.path", "mega", "--model.revision", LATER)
    assert f"at {LATER}; check model.revision" in cli(train.main, *run).error
    assert not (tmp_path / "run").exists() and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("refusal", [(401, "RepoNotFound"), (403, "GatedRepo"), (404, "EntryNotFound")])
def test_a_refusal_costs_one_line(refusal, hub):
    hub.refusal = refusal
    words = rf"the hub refused DALL·E mini .* HTTP status {refusal[0]}; log in .* or give a folder"
    with pytest.raises(ValueError, match=words) as caught:
        load_model("mini", CPU)
    assert "\n" not in str(caught.value)


def test_without_a_connection_it_fails_at_once(hub):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(ValueError, match=r"is not complete in the cache .* could not be fetched .*refused"):
        load_model("mini", CPU)


def test_offline_without_a_copy(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"in the cache {tmp_path}/cache and HF_HUB_OFFLINE is set"):
        load_model("mega", CPU)
    assert hub.requests == []


def test_a_full_disk_or_anything_else(hub, monkeypatch):
    import huggingface_hub

    original = huggingface_hub.hf_hub_download

    def fail(*arguments, local_files_only=False, **options):
        if local_files_only:
            return original(*arguments, local_files_only=True, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match=r"could not be fetched .*No space left"):
        load_model("mini", CPU)
