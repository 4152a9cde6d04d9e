"""Evaluates a run's policy against its reference: `python -m dalle_ppo.evaluate runs/NAME`."""

import argparse
import dataclasses
from pathlib import Path

from .config import OneLineParser, run_main


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m dalle_ppo.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--captions", help="a file of captions instead of the run's held-out ones")
    parser.add_argument("--num_captions", type=int, help="default: the run's evaluation.num_captions")
    parser.add_argument("--num_samples", type=int, help="images a caption; default: the run's")
    parser.add_argument("--seed", type=int, help="of captions and noise; default: the run's")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Draws both sides, writes evaluation.json and report.html into the run's folder."""
    args = parse_arguments(argv)

    from .config import load_config

    config = load_config(args.run / "config.yaml")
    changes = {
        "num_captions": args.num_captions,
        "samples_per_caption": args.num_samples,
        "seed": args.seed,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changes))

    from .build import build_measures, choose_device, evaluation_captions, load_model
    from .evaluation import evaluate
    from .report import write_report
    from .train import headline

    device = choose_device(args.device)
    model = load_model(str(args.run), device)
    if model.settings is not None:
        config = dataclasses.replace(config, policy=model.settings)
    if args.captions:
        captions = captions_of_file(args.captions, config.evaluation.num_captions)
    else:
        captions = evaluation_captions(config)
    measures = build_measures(config, model.world, device)
    result = evaluate(config, args.run, model.decoder, model.reference, model.parts, measures, captions)
    print(headline(result))
    print(f"report: {write_report(args.run)}")
    return 0


def captions_of_file(path: str, wanted: int):
    """Distinct captions of a file, at most `wanted`.

    Raises:
        ValueError: if the file cannot be read or holds no caption.
    """
    from .caption_streams import DrawSettings
    from .captions import open_captions

    source = open_captions(path, DrawSettings(split=None))
    records, fruitless = {}, 0
    while len(records) < wanted and fruitless < 3:
        before = len(records)
        for record in source.next_batch(min(256, wanted - before)):
            records.setdefault(record.id, record)
        fruitless = fruitless + 1 if len(records) == before else 0
    return list(records.values())


if __name__ == "__main__":
    run_main(main)
