"""PPO iterations of DALL·E mini or Mega at full size on this machine: seconds by phase and peak memory.

    python benchmarks/laion_iteration.py                  # mini: one iteration of 2 images on the CPU
    python benchmarks/laion_iteration.py --device cuda --num_captions 32 --num_iterations 3
    python benchmarks/laion_iteration.py --model mega --device cuda --num_captions 96 --num_iterations 2

Runs `configs/laion_nsfw_mini.yaml`, or Mega's, through `python -m dalle_ppo.train`. Weights, CLIP ViT-L/14,
detector and captions are random, but have the true sizes and file formats. They take 3 GB in FOLDER for mini
and 7 GB for Mega; the checkpoint takes another 4 or 25 GB. Actor and critic both learn from the start; in the
file, the actor starts after 10 iterations. `--tiny` does the same with small networks, in seconds, to try out
this script.

Prints the last iteration, because a GPU's first one also compiles kernels. Expected peak of mini on the CPU,
in 10^9 bytes: 8.4 of weights, gradients and Adam (the file's comments list them), 1 for the libraries, 1.3 of
activations for 2 images, or later 1.8 while a large file is written: below 13.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the stand-ins
PHASES = ("seconds_rollout", "seconds_reward", "seconds_scoring", "seconds_update", "seconds")


def write_stand_ins(folder: Path, tiny: bool, model: str) -> None:
    """Writes everything that the run would download into the caches under `folder`."""
    import laion_standins as stand_ins

    shrink(tiny)
    hub, own = folder / "hf" / "hub", folder / "cache" / "dalle_ppo"
    hub.mkdir(parents=True)
    own.mkdir(parents=True)
    stand_ins.write_weights(hub, model)
    stand_ins.write_clip(hub, "ViT-L-14-quickgelu")
    stand_ins.write_detector(own, "laion-l14")
    stand_ins.write_captions(hub, num_shards=2, rows=2000)


def train(folder: Path, tiny: bool, model: str, num_captions: int, device: str, num_iterations: int) -> None:
    """Trains into `folder`/run."""
    import torch

    shrink(tiny)
    from dalle_ppo.config.command_line import parse_command_line
    from dalle_ppo.runs.metrics import read_metrics
    from dalle_ppo.train import main
    from dalle_ppo.training.iteration_metrics import peak_memory_gb

    file = ROOT / "configs" / f"laion_nsfw_{model}.yaml"
    minibatch_size = parse_command_line(["--config", str(file)], "", "")[0].update.minibatch_size
    divides = num_captions % minibatch_size == 0
    settings = {
        "device": device,
        "num_iterations": num_iterations,
        "rollout.rollout_batch_size": num_captions,
        **({} if divides else {"update.minibatch_size": num_captions}),
        "critic.warmup_iterations": 0,
        "evaluation.at_end": "false",
        "evaluation.num_captions": num_captions,  # this many samples are drawn before and after
        "run_dir": folder / "run",
    }
    overrides = [str(text) for name, value in settings.items() for text in (f"--{name}", value)]
    started = time.perf_counter()
    main(["--config", str(file), *overrides])
    seconds = time.perf_counter() - started
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    row = rows[-1]
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"\n{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{num_captions} captions, one image each{', tiny networks' if tiny else ''}\n")
    print("| phase | seconds |\n|---|---|")
    for phase in PHASES:
        print(f"| {'the iteration' if phase == 'seconds' else phase} | {row[phase]:.2f} |")
    rest = seconds - sum(row["seconds"] for row in rows)
    print(f"| loading, samples before and after, checkpoint | {rest:.2f} |")
    peak = peak_memory_gb(torch.device("cpu"))
    print(f"\npeak memory {row['memory_gb']:.2f} GB until the end of the iteration, {peak:.2f} GB overall")
    print(f"reward {row['reward_mean']:+.2f}, policy's gradient norm {row['gradient_norm']:.3g}")


def shrink(tiny: bool) -> None:
    """Replaces the full-size networks with small ones, in this process."""
    import laion_standins as stand_ins

    for table, key, sizes in stand_ins.TINY if tiny else []:
        table[key] = sizes


def in_process_of_its_own(function, *arguments) -> None:
    """Calls the function in its own process, so that only its own memory counts."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{function.__name__} ended with {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini", choices=["mini", "mega"])
    parser.add_argument("--num_captions", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--num_iterations", type=int, default=1)
    parser.add_argument(
        "--folder", help="needs 7 GB of free space, 32 for Mega; default: the system's temporary folder"
    )
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        caches = {"HF_HOME": folder / "hf", "XDG_CACHE_HOME": folder / "cache", "HF_HUB_OFFLINE": 1}
        os.environ.update({key: str(value) for key, value in caches.items()})
        in_process_of_its_own(write_stand_ins, folder, args.tiny, args.model)
        run = args.tiny, args.model, args.num_captions, args.device, args.num_iterations
        in_process_of_its_own(train, folder, *run)


if __name__ == "__main__":
    main()
