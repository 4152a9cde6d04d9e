"""`--help` of the commands with options of their own: each option says what it is, and its default."""

from importlib import import_module

import pytest

from dalle_ppo.config.command_line import OneLineParser

COMMANDS = (
    "generate",
    "evaluate",
    "pretrain",
    "detector",
    "label",
    "export",
    "reward_model",
    "align",
    "captions",
)


class Made(Exception):
    """Brings a command's parser out of the function that makes it."""


def parser_of(command, monkeypatch):
    def stop(parser, *_, **__):
        raise Made(parser)

    monkeypatch.setattr(OneLineParser, "parse_known_args", stop)
    module = import_module(f"dalle_ppo.{command}" + (".__main__" if command == "captions" else ""))
    with pytest.raises(Made) as made:
        module.parse_arguments([])
    return made.value.args[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    within = next((a.choices.values() for a in parser._actions if isinstance(a.choices, dict)), [])
    for one in [parser, *within] if command == "detector" else [parser]:
        silent = [a.dest for a in one._actions if not a.help and not isinstance(a.choices, dict)]
        assert silent == []


@pytest.mark.parametrize(
    "command, told",
    [
        ("pretrain", "pairs in an optimiser step; default: 64"),
        ("generate", "how many to draw; default: 9"),
        ("generate", "cpu, cuda or cuda:N; default: auto"),
        ("reward_model", "to validate with; default: 0.003 0.01 0.03"),
        ("label", "0 for any free one; default: 8765"),
        ("label", "repeated; then the command gives up; default: 5"),
        ("label", "retries included; default: 1000"),
        ("align", "less than this share of the new answers; default: 0.6"),
        ("align", "folder of the run, required here or in --config"),
    ],
)
def test_defaults_are_told(command, told, monkeypatch):
    assert told in " ".join(parser_of(command, monkeypatch).format_help().split())


def test_a_default_is_told_once_and_only_if_there_is_one():
    parser = OneLineParser(prog="x")
    parser.add_argument("--many", metavar="N", type=int, nargs="+", default=[1, 2], help="many")
    parser.add_argument("--zero", type=int, default=0, help="zero")
    parser.add_argument("--share", default="5%", help="share")
    parser.add_argument("--switch", action="store_true", help="switch")
    parser.add_argument("--absent", help="absent")
    parser.add_argument("--empty", default="", help="empty")
    parser.add_argument("--given", required=True, default=3, help="given")
    parser.add_argument("--own", default=4, help="own; default: four")
    lines = [line for line in parser.format_help().split("options:")[1].splitlines() if "  --" in line]
    assert [line.split("  ")[-1].strip() for line in lines] == [
        *("many; default: 1 2", "zero; default: 0", "share; default: 5%"),
        *("switch", "absent", "empty", "given", "own; default: four"),
    ]
