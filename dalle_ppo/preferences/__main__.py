"""Imports and exports answers, and says what a store holds.

    python -m dalle_ppo.preferences report RUN
    python -m dalle_ppo.preferences import pickapic RUN train-*.parquet
    python -m dalle_ppo.preferences import hpdv2 RUN test.json --images HPD/test
    python -m dalle_ppo.preferences export parquet RUN answers.parquet

RUN is a run's folder, any other project's folder, or the folder of a store itself.
"""

import argparse
from pathlib import Path

from dalle_ppo.config.command_line import OneLineParser, run_main

IMPORTS = ("pickapic", "hpdv2", "imagereward")
EXPORTS = ("parquet", *IMPORTS)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dalle_ppo.preferences",
        description=__doc__,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="report|import|export")
    report = commands.add_parser("report", help="what a store holds, and how far its raters agree")
    bring = commands.add_parser("import", help="read answers from a published data set")
    bring.add_argument("layout", choices=IMPORTS)
    send = commands.add_parser("export", help="write answers to a file")
    send.add_argument("layout", choices=EXPORTS, help="parquet has every field of every answer")
    for command in (report, bring, send):
        command.add_argument("store", metavar="RUN", type=Path, help="folder of a run, project or store")
    bring.add_argument("files", metavar="FILE", nargs="+", type=Path, help="parquet or JSON files")
    bring.add_argument("--images", type=Path, help="folder that paths in JSON files start from")
    bring.add_argument("--limit", type=int, help="read this many rows; default: all")
    bring.add_argument(
        "--size", type=int, default=512, help="shrink larger pictures to this many pixels a side"
    )
    send.add_argument(
        "out", metavar="OUT", type=Path, help="file to write; JSON comes with a folder of pictures"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Reports, imports or exports."""
    args = parse_arguments(argv)
    if args.command == "import":
        return bring(args)

    from dalle_ppo.preferences.store import find_store

    store = find_store(args.store)
    if args.command == "export":
        return send(args, store)

    from dalle_ppo.preferences.agreement import agreement_lines

    print("\n".join(store.report().lines()))
    lines = agreement_lines([answer for answer in store.answers() if answer.kind == "ranking"])
    print("\n".join(lines or ["no rankings yet, so there is no agreement to report"]))
    return 0


def bring(args: argparse.Namespace) -> int:
    """Adds the answers of published files to a store, which is made if it is missing."""
    for name in ("limit", "size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")

    from dalle_ppo.preferences.layouts.importing import Bringing, import_files
    from dalle_ppo.preferences.store import Store

    # Both names of a store are understood; a new one goes into the project's folder.
    folder = args.store if (args.store / "answers.jsonl").is_file() else args.store / "preferences"
    store = Store(folder)
    brought = import_files(args.files, store, Bringing(args.layout, args.images, args.limit, args.size))
    print("\n".join(brought.lines(folder)))
    return 0


def send(args: argparse.Namespace, store) -> int:
    """Writes a new file."""
    from dalle_ppo.preferences.layouts.exporting import export_store

    print(export_store(store, args.layout, args.out))
    return 0


if __name__ == "__main__":
    run_main(main)
