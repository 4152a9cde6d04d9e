"""The examples of CONTRIBUTING.md are new files alone, and work as it says."""

import importlib
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tiny_trainer import NoWriter, tiny_trainer

from dalle_ppo.build.rewards import build_reward
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.source import CaptionRequest, open_captions
from dalle_ppo.captions.streams import DrawSettings
from dalle_ppo.config.command_line import parse_command_line
from dalle_ppo.config.settings import Config
from dalle_ppo.rewards.base import RewardResult
from dalle_ppo.training.scoring import Networks
from dalle_ppo.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n# (dalle_ppo/[\w/]+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
TINY = (
    "--num_iterations 2 --rollout.rollout_batch_size 16 --update.minibatch_size 8 --update.microbatch_size 8 "
    "--actor.trainable all --actor.learning_rate 0.01 --actor.warmup_iterations 0 --actor.min_entropy null "
    "--evaluation.num_captions 4"
)


def nearest_package(file: str) -> tuple[ModuleType, Path]:
    """The package that a new file comes to lie in, at whatever depth, and its folder."""
    folder = next(parent for parent in Path(file).parents if (ROOT / parent / "__init__.py").exists())
    return importlib.import_module(".".join(folder.parts)), folder


def module_name(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Makes the examples importable, as if their files lay in the package."""
    root = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        for file, code in FILES.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(code, encoding="utf-8")
            package, folder = nearest_package(file)
            patch.setattr(package, "__path__", [*package.__path__, str(root / folder)])
        importlib.invalidate_caches()
        yield
    for file in FILES:
        sys.modules.pop(module_name(file), None)
        package, folder = nearest_package(file)
        vars(package).pop(Path(file).relative_to(folder).parts[0].removesuffix(".py"), None)


def parse(*argv: str) -> Config:
    return parse_command_line(list(argv), "train", "")[0]


def test_the_examples_are_all_there_and_all_new():
    assert {Path(file).parent.as_posix() for file in FILES} == {
        "dalle_ppo/config/terms",
        "dalle_ppo/rewards",
        "dalle_ppo/config/objectives",
        "dalle_ppo/training/objectives",
        "dalle_ppo/captions/sources",
        "dalle_ppo/models/table",
    }
    assert not any((ROOT / file).exists() for file in FILES)


def test_the_reward_term(examples):
    terms = '[{name: brightness, target: 0.25}, {name: brightness, weight: 4, only_if: "brightness > 0.7"}]'
    reward = build_reward(parse("--reward.terms", terms), None, torch.device("cpu"))
    images = torch.tensor([0.25, 0.75, 0.5])[:, None, None, None].expand(3, 3, 2, 2)
    result = reward(images, ["a", "b", "c"])
    # The second term wants 0.5 and counts for the second image alone.
    assert result.total.tolist() == pytest.approx([0, -0.5 - 4 * 0.25, -0.25])
    assert result.parts["brightness"].tolist() == pytest.approx([0.25, 0.75, 0.5])


def test_the_reward_terms_settings_are_checked(examples):
    with pytest.raises(ValueError, match="target"):
        parse("--reward.terms", "[{name: brightness, tarket: 0.25}]")


def test_the_caption_source(examples):
    everything = open_captions("colours:boat", CaptionRequest(DrawSettings(split=None)))
    texts = {record.text for record in everything.next_batch(100)}
    assert len(texts) == 100 and "a red boat on a blue background" in texts
    train, heldout = (
        {record.text for record in open_captions("colours:boat", request).next_batch(90)}
        for request in (CaptionRequest(DrawSettings(split=split)) for split in ("train", "heldout"))
    )
    assert train and heldout and not train & heldout
    with pytest.raises(ValueError, match="columns"):
        open_captions("colours:boat", CaptionRequest(DrawSettings(), reading=ReadSettings(column="text")))


def test_the_objectives_loss_and_gradient(examples):
    module = importlib.import_module("dalle_ppo.training.objectives.truncated")
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    rows = SimpleNamespace(
        old_log_probs=torch.tensor([[-1.0, -3.0], [-0.7, -2.0]]),
        advantages=torch.tensor([[1.0, 1.0], [-2.0, 0.5]]),
    )
    result = module.loss(SimpleNamespace(log_probs=log_probs), rows, SimpleNamespace(max_ratio=1.5))
    result.loss.sum().backward()
    # Only the second token's weight, e, is above 1.5.
    weights = [[1.0, 1.5], [math.exp(0.2), math.exp(-1)]]
    assert (-log_probs.grad / rows.advantages).tolist() == [pytest.approx(row) for row in weights]
    assert result.clipped.tolist() == [[False, True], [False, False]]


def test_the_objective_brings_defaults_and_settings(examples):
    assert parse("--objective", "truncated").update.epochs == 2
    config = parse("--objective", "truncated", "--update.epochs", "1", "--truncated.max_ratio", "1.5")
    assert (config.update.epochs, config.objective_settings.max_ratio) == (1, 1.5)
    with pytest.raises(ValueError, match=r"truncated\.max_ratio"):
        parse("--objective", "truncated", "--truncated.max_ratio", "0")


def test_a_run_with_all_three(examples, tmp_path):
    """Trains a tiny model on the new captions, the new reward alone and the new objective."""
    arguments = TINY + " --objective truncated --captions.source colours:boat"
    config = parse(*arguments.split(), "--reward.terms", "[{name: brightness}]")
    trainer = tiny_trainer(config, tmp_path)
    before = {name: value.clone() for name, value in trainer.networks.actor.state_dict().items()}
    metrics = [trainer.iterate(NoWriter()) for _ in range(2)]
    assert all(0 < row["reward/brightness"] < 1 for row in metrics)
    assert all(row["ratio_first_minibatch_max_deviation"] < 1e-4 for row in metrics)
    after = trainer.networks.actor.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_policy_family(examples, tmp_path):
    """Bright codes are rewarded, and drawn more often after training, against a KL that holds them back."""
    module = importlib.import_module("dalle_ppo.models.table.family")
    family, start = module.TableFamily(), torch.zeros(2, 4)
    actor, reference = module.Table(start.clone()), module.Table(start.clone()).requires_grad_(False)
    captions = open_captions("colours:boat", CaptionRequest(DrawSettings(split=None)))
    more = "--actor.learning_rate 0.1 --actor.entropy_coef 0 --num_iterations 20"
    trainer = Trainer(
        parse(*TINY.split(), *more.split()),
        tmp_path,
        Networks(family, actor, reference, family.new_critic(actor)),
        lambda images, captions, metadata=None: RewardResult(images.mean(dim=(1, 2, 3))),
        captions,
        captions.next_batch(4),
    )
    trainer.run()
    probabilities = actor.values.detach().softmax(-1)
    assert (probabilities[:, 3] > 0.4).all() and (probabilities[:, 0] < 0.15).all()
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["reward_mean"] > json.loads(lines[0])["reward_mean"]
