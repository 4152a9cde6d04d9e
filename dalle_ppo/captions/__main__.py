"""Shows what a source of captions holds, without training: `python -m dalle_ppo.captions SOURCE`."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from dalle_ppo.base.new_file import check_new_file
from dalle_ppo.config.captions import CaptionsConfig
from dalle_ppo.config.command_line import OneLineParser, parse_command_line, run_main
from dalle_ppo.config.document import described

PROGRAM = "python -m dalle_ppo.captions"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="as in captions.source")
    parser.add_argument("--json", action="store_true", help="print the overview as JSON")
    parser.add_argument(
        "--dump",
        type=Path,
        help="write every caption that passes the filters, once, into this new file, as JSON Lines",
    )
    parser.add_argument("--config", type=Path, help="YAML file of settings, such as a run's config.yaml")
    texts = described(CaptionsConfig)
    for f in fields(CaptionsConfig):
        if f.name != "source":
            help_text = texts[f.name].replace("%", "%%")
            parser.add_argument(f"--{f.name}", f"--captions.{f.name}", metavar="VALUE", help=help_text)
    return parser.parse_args(argv)


def main(argv: list[str] | None) -> int:
    """Prints an overview and ten captions."""
    args = parse_arguments(argv)
    if args.dump is not None:
        check_new_file("--dump", args.dump, args.dump.suffix)
    config = config_of(args)

    from dalle_ppo.base.atomic import atomic_write
    from dalle_ppo.build.captions import TRAINING_STREAM, build_captions, draw_settings
    from dalle_ppo.captions.overview import as_text, every_caption, look_at
    from dalle_ppo.captions.reading import shown

    contents, settings = build_captions(config, 0, TRAINING_STREAM, None).contents, draw_settings(config)
    if contents is None:
        raise ValueError(f"captions.source is {args.source}, which makes up its captions as they are drawn")
    shards = contents.shards
    overview = look_at(contents, settings)
    if not overview.rows:
        why = f"none meets captions.where = {shown(config.captions.where)}; " if config.captions.where else ""
        raise ValueError(f"captions: no captions could be read from {args.source}; {why}give others")
    if args.json:
        print(json.dumps(overview.to_dict(), indent=1, ensure_ascii=False))
    else:
        print(as_text(overview))
        for text, tag in overview.examples:
            print(f"  {tag:<9} {' '.join(text.split())[:100]}")
    if args.dump is not None:
        lines = (
            json.dumps({"text": text, "tag": tag}, ensure_ascii=False) + "\n"
            for text, tag in every_caption(shards, settings)
        )
        atomic_write(args.dump, lambda new: write_lines(new, lines))
    return 0


def config_of(args: argparse.Namespace):
    """The settings of the file, if there is one, overridden by the command line."""
    argv = [] if args.config is None else ["--config", str(args.config)]
    argv += ["--captions.source", args.source]
    for f in fields(CaptionsConfig):
        value = getattr(args, f.name)
        if f.name != "source" and value is not None:
            argv += [f"--captions.{f.name}", value]
    return parse_command_line(argv, PROGRAM, "")[0]


def write_lines(path: Path, lines) -> None:
    """Writes lines of text as UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


if __name__ == "__main__":
    run_main(main)
