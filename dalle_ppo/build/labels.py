"""Builds what draws the pictures that are labelled, from a run."""

from dataclasses import dataclass
from pathlib import Path

from dalle_ppo.build.captions import LABELS_STREAM, build_captions
from dalle_ppo.build.models import choose_device, is_run, load_model
from dalle_ppo.build.rewards import load_run_clip
from dalle_ppo.build.unsafe import unsafe_detector
from dalle_ppo.config.command_line import load_config
from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.binding import bind_clip
from dalle_ppo.models.heads.preference import PreferenceHead, load_preference
from dalle_ppo.preferences.choosing import Disagreement
from dalle_ppo.preferences.chosen_sets import ChosenSets
from dalle_ppo.preferences.drawing import Drawer, DrawOptions, Side
from dalle_ppo.preferences.store import Store
from dalle_ppo.runs.places import refuse_wrong_path
from dalle_ppo.runs.provenance import weights_sha256


@dataclass(frozen=True)
class LabelOptions:
    """What is drawn for labels.

    Args:
        num_images: pictures in a set.
        reference: the reference draws half of them.
        seed: of captions, noise and order.
        device: as in the setting.
        memory_gb: for caches and activations.
        reward_model: its members' disagreement chooses the sets; "" shows them as they come.
    """

    num_images: int = 2
    reference: bool = False
    seed: int = 0
    device: str = "auto"
    memory_gb: float = 4.0
    reward_model: str = ""

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ValueError(f"--num_images is {self.num_images}; a set has at least 2 pictures")
        if self.reference and self.num_images % 2:
            raise ValueError(
                f"--num_images is {self.num_images}, but with --reference half of them are the policy's; "
                "give an even number"
            )


def store_of(run: str | Path) -> Store:
    """The store of a run, which may still be empty.

    Raises:
        ValueError: that is no run.
    """
    if not is_run(str(run)):
        refuse_wrong_path(run, "RUN", "{}")
        raise ValueError(f"RUN is {run}, which is not a run of dalle_ppo.train (it has no config.yaml)")
    return Store(Path(run) / "preferences")


def open_drawer(run: str | Path, store: Store, options: LabelOptions) -> Drawer | ChosenSets:
    """Draws with the newest policy of a run, for captions that it trains on.

    Raises:
        ValueError: the run has no checkpoint, its captions cannot be read, or the reward model belongs to
            another CLIP or has one member.
    """
    config, device = load_config(Path(run) / "config.yaml"), choose_device(options.device)
    model = load_model(str(run), device)
    decoders = {"policy": model.decoder}
    if options.reference:
        decoders["reference"] = model.reference
    family, each = model.family(), options.num_images // len(decoders)
    sides = [
        Side(name, family.sampler_weights(decoder), weights_sha256(decoder), each)
        for name, decoder in decoders.items()
    ]
    drawer = Drawer(
        family,
        sides,
        build_captions(config, options.seed, LABELS_STREAM, "train").next_batch,
        store,
        DrawOptions(options.seed, model.iteration or 0, options.memory_gb),
        unsafe_detector(str(run), model.world, device),
    )
    if not options.reward_model:
        return drawer
    clip = load_run_clip(config.clip, model.world, device)
    choose = Disagreement(load_head(options.reward_model, clip), store, clip)
    return ChosenSets(drawer, choose, choose.by)


def load_head(file: str | Path, clip: ClipScorer) -> PreferenceHead:
    """A reward model on its CLIP's device.

    Raises:
        ValueError: the file is no reward model, or it belongs to another CLIP.
    """
    head = load_preference(file).to(clip.device)
    bind_clip(head, clip)
    return head
