"""One whole PPO iteration: ours, the obvious way, and TRL's PPOTrainer; seconds per image and peak memory.

    python benchmarks/iteration.py --size small --folder work    # tries it out, in a minute or two
    python benchmarks/iteration.py --size mini --folder work     # true size, random weights: 9 GB

Each way runs in a process of its own, on one CPU thread unless OMP_NUM_THREADS says otherwise. All draw the
same number of images, without guidance, and learn from them in as many epochs and minibatches, with a critic
of its own, all weights trained (ours: `--trainable`), float32, and a reward that costs nothing. Pixels are
decoded by none.

- ours: `Trainer.iterate`, text encoder included.
- obvious: the same decoder without a cache. Every token is drawn by a pass over all tokens before it, and
  scored by one, with gradient in the update. A pass takes time in proportion to its length, so two lengths
  are measured, a quarter and three quarters of an image, and their mean is counted once for every token.
  Optimiser steps and text encoder are left out.
- trl: TRL's experimental PPOTrainer, with a Llama of the same number of parameters. It is installed into
  FOLDER/venv, which sees this environment's torch.
"""

import argparse
import json
import os
import platform
import resource
import site
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle_ppo.build.models import LoadedModel
from dalle_ppo.build.networks import build_networks
from dalle_ppo.build.rewards import build_reward
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.kl import KlConfig
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.rollout import RolloutConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.config.update import UpdateConfig
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder, TextStates
from dalle_ppo.models.dalle.family import FrozenParts
from dalle_ppo.models.dalle.presets import BART_PRESETS, BartConfig
from dalle_ppo.models.dalle.tokenizer import TextTokens
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rewards.base import RewardResult
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.metrics import SilentWriter
from dalle_ppo.training.trainer import Trainer

TRL = "trl==1.12.0"
PROMPT = 16
"""Tokens of a caption."""
SIZES = {
    "small": BartConfig(
        num_layers=4,
        num_heads=4,
        width=128,
        glu_width=340,
        text_vocab_count=512,
        image_vocab_count=1024,
        num_codes=1024,
        num_image_tokens=128,
    ),
    "mini": BART_PRESETS["mini"],
}


@dataclass(frozen=True)
class Measured:
    """One way's iteration.

    Args:
        wall, cpu: seconds.
        peak_gb: the process's peak of resident memory, 10^9 bytes.
        parameters: of the policy.
        drawing: CPU seconds of drawing tokens.
    """

    wall: float
    cpu: float
    peak_gb: float
    parameters: int
    drawing: float


class Tokens:
    """In place of a tokenizer: every caption is `PROMPT` tokens, every other text two."""

    def encode(self, captions: list[str]) -> TextTokens:
        """Tokens, int64 [B, 64], padded with 1."""
        rows = torch.ones(len(captions), 64, dtype=torch.int64)
        for number, row in enumerate(rows):
            row[:PROMPT] = torch.arange(3, 3 + PROMPT) + number
        return TextTokens(rows, 0)

    def unconditional(self) -> Tensor:
        """What guidance would read."""
        return self.encode([""]).tokens[0]


class Pixel(nn.Module):
    """In place of the VQGAN: an image is the grey of its first code."""

    def decode_uint8(self, tokens: Tensor, microbatch_size: int | None = None) -> Tensor:
        """uint8 [N, 3, 1, 1]."""
        return (tokens[:, :1, None, None] % 256).to(torch.uint8).expand(-1, 3, 1, 1)


class Captions:
    """As many captions as are asked for."""

    def next_batch(self, count: int) -> list[CaptionRecord]:
        """Captions by number."""
        return [CaptionRecord(f"caption {i}", "none", str(i)) for i in range(count)]

    def metrics(self) -> dict[str, float]:
        """Nothing to log."""
        return {}


def nothing(images: Tensor, captions: list[str]) -> RewardResult:
    """A reward that costs nothing."""
    return RewardResult(images[:, 0, 0, 0], {})


def settings(a: argparse.Namespace) -> Config:
    """PPO with a critic, the KL in the reward and no entropy term, as TRL has it."""
    return Config(
        policy=PolicySettings(guidance=1.0),
        rollout=RolloutConfig(rollout_batch_size=a.images),
        actor=ActorConfig(trainable=a.trainable, entropy_coef=0.0, min_entropy=None, learning_rate=1e-5),
        kl=KlConfig(placement="reward", estimator="k1"),
        reward=RewardConfig(terms=({"name": "iteration:nothing"},)),
        update=UpdateConfig(epochs=a.epochs, minibatch_size=a.minibatch, microbatch_size=a.images),
    )


def trainer_of(a: argparse.Namespace) -> Trainer:
    """A trainer with random networks of a size."""
    sizes, config = SIZES[a.size], settings(a)
    torch.manual_seed(0)
    parts = FrozenParts(Tokens(), BartEncoder(sizes).requires_grad_(False), Pixel())
    decoder = BartDecoder(sizes)
    networks = build_networks(config, LoadedModel(decoder, decoder, parts, None, None))
    reward = build_reward(config, None, torch.device("cpu"))
    return Trainer(config, Path("unused"), networks, reward, Captions(), [])


def of_ours(a: argparse.Namespace) -> Measured:
    """Our iteration."""
    trainer = trainer_of(a)
    writer, collect, drawing = SilentWriter(), trainer.collect, []

    def timed_collect() -> Experience:
        began = time.process_time()
        drawn = collect()
        drawing.append(time.process_time() - began)
        return drawn

    trainer.collect = timed_collect
    wall, cpu = timed(lambda: trainer.iterate(writer))
    return Measured(wall, cpu, peak_gb(), parameters_of(trainer.networks.reference), sum(drawing))


def of_obvious(a: argparse.Namespace) -> Measured:
    """The obvious way, from parts."""
    networks, sizes = trainer_of(a).networks, SIZES[a.size]
    text = TextStates(torch.randn(a.images, PROMPT, sizes.width), torch.ones(a.images, PROMPT).bool())
    tokens = torch.randint(sizes.num_codes, (a.images, sizes.num_image_tokens))
    both = {
        "actor": lambda drawn: networks.actor.head(
            networks.actor(drawn, networks.actor.cross_states(text))[:, -1]
        ).log_softmax(-1),
        "critic": lambda drawn: networks.critic(drawn, networks.critic.cross_states(text))[:, -1],
    }
    wall = cpu = drawing = 0.0
    count = sizes.num_image_tokens
    for name, compute in both.items():
        for length in (count // 4, 3 * count // 4):
            drawn = tokens[:, :length]
            forward = timed(lambda: torch.no_grad()(compute)(drawn))  # noqa: B023
            learned = timed(lambda: compute(drawn).sum().backward())  # noqa: B023
            # The actor draws, and the reference, which is as large, scores; the critic values.
            passes = 2 if name == "actor" else 1
            wall += (passes * forward[0] + a.epochs * learned[0]) * count / 2
            cpu += (passes * forward[1] + a.epochs * learned[1]) * count / 2
            drawing += forward[1] * count / 2 if name == "actor" else 0.0
    return Measured(wall, cpu, peak_gb(), parameters_of(networks.reference), drawing)


def of_trl(a: argparse.Namespace) -> Measured:
    """TRL's iteration, in its own environment."""
    sizes = SIZES[a.size]
    with torch.device("meta"):
        parameters = parameters_of(BartDecoder(sizes))
    numbers = {
        "parameters": parameters,
        "layers": sizes.num_layers,
        "heads": sizes.num_heads,
        "width": sizes.width,
        "codes": sizes.num_codes,
        "tokens": sizes.num_image_tokens,
        "prompt": PROMPT,
        "images": a.images,
        "minibatch": a.minibatch,
        "epochs": a.epochs,
    }
    script = Path(__file__).with_name("trl_iteration.py")
    command = [str(environment(Path(a.folder))), str(script)]
    command += [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    return read(command)


def environment(folder: Path) -> Path:
    """The Python of an environment with TRL; made if it is not there."""
    place = folder.absolute() / "venv"
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (place / "complete").is_file():
        venv.create(place, with_pip=True, clear=True)
        where = "import site; print(site.getsitepackages()[0])"
        own = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
        (Path(own) / "parent.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "-q", TRL], check=True)
        (place / "complete").touch()
    return python


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_gb() -> float:
    """Peak of this process's resident memory, 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def parameters_of(network: nn.Module) -> int:
    """Numbers in a network."""
    return sum(p.numel() for p in network.parameters())


def read(command: list[str]) -> Measured:
    """What a process measured: the last line that it prints."""
    variables = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


WAYS = {"ours": of_ours, "obvious": of_obvious, "trl": of_trl}
BARS = {"obvious": 30, "trl": 3}


def table(measured: dict[str, Measured], a: argparse.Namespace) -> list[str]:
    """Lines of a table, in CPU seconds as the machine may be shared."""
    sizes, ours = SIZES[a.size], measured.get("ours")
    lines = [
        f"{a.images} images of {sizes.num_image_tokens} tokens, {a.epochs} epochs, minibatches of "
        f"{a.minibatch}, OMP_NUM_THREADS {os.environ['OMP_NUM_THREADS']}, {platform.machine()}, "
        f"torch {torch.__version__}",
        "| way | parameters, millions | CPU s per image | of which drawing | wall s per image | peak, GB "
        "| times ours | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, m in measured.items():
        ratio = f"{m.cpu / ours.cpu:.1f}" if ours else ""
        label = f"{name}, scaled from parts" if name == "obvious" else name
        lines.append(
            f"| {label} | {m.parameters / 1e6:.1f} | {m.cpu / a.images:.3g} | {m.drawing / a.images:.3g} "
            f"| {m.wall / a.images:.3g} "
            f"| {m.peak_gb:.2f} | {ratio} | {BARS.get(name, '')} |"
        )
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--folder", default="runs/iteration", help="where TRL is installed")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--minibatch", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--trainable", default="all", help="of ours; TRL trains all weights")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--measure", choices=WAYS, help="measure one way in this process, and print JSON")
    a = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if a.measure:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        print(json.dumps(asdict(WAYS[a.measure](a))))
        return
    given = [text for name in ("size", "folder", "images", "minibatch", "epochs", "trainable")
             for text in (f"--{name}", str(getattr(a, name)))]  # fmt: skip
    measured = {}
    for way in a.ways:
        print(f"measuring {way}", file=sys.stderr, flush=True)
        measured[way] = read([sys.executable, __file__, *given, "--measure", way])
    print("\n".join(table(measured, a)))


if __name__ == "__main__":
    main()
