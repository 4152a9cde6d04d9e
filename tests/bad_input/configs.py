"""Files of settings, and settings on the command line."""

import functools
from pathlib import Path

from bad_input.case import Case, cases, text_file

from dalle_ppo.build.captions import read_settings
from dalle_ppo.captions.source import check_shares
from dalle_ppo.config.command_line import load_config, parse_command_line

BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 8)}]\n"
    for before, name in zip("abcde", "bcdef", strict=True)
)
"""Eight times eight ... values: 2 MB written out, so that it harms nobody; the bound is 50 000 values."""

FILES = {
    "empty": ("", ("settings as YAML",)),
    "only a comment": ("# seed: 1\n", ("settings as YAML",)),
    "a word": ("seed\n", ("settings as YAML",)),
    "a list": ("- seed: 1\n", ("settings as YAML",)),
    "a tab": ("seed:\n\t1\n", ("c.yaml", "line 2")),
    "unclosed bracket": ("reward: {terms: [\n", ("c.yaml", "line")),
    "unclosed quote": ('run_dir: "runs\n', ("c.yaml", "line")),
    "not UTF-8": (b"seed: \xff\xfe\n", ("c.yaml", "UTF-8")),
    "a NUL byte": (b"seed: 1\0\n", ("c.yaml",)),
    "two documents": ("seed: 1\n---\nseed: 2\n", ("c.yaml", "document")),
    "a key twice": ("seed: 1\nseed: 2\n", ("c.yaml", "seed appears twice")),
    "a nested key twice": (
        "actor: {trainable: all, trainable: head}\n",
        ("c.yaml", "trainable appears twice"),
    ),
    "a number as key": ("1: 2\n", ("1",)),
    "a list as key": ("? [1, 2]\n: 3\n", ("c.yaml", "unhashable")),
    "an object of Python": ("seed: !!python/object/apply:os.getcwd []\n", ("c.yaml", "python/object")),
    "an unknown tag": ("seed: !mine 3\n", ("c.yaml", "!mine")),
    "an unknown alias": ("seed: *nobody\n", ("c.yaml", "nobody")),
    "an alias inside itself": ("seed: &a [*a]\n", ("c.yaml", "*a is used inside")),
    "aliases that multiply": (BOMB, ("c.yaml", "more than 50000 values")),
    "merged aliases that multiply": (
        BOMB + "seed:\n" + "".join(f"  - *{name}\n" for name in "fff"),
        ("c.yaml", "more than 50000 values"),
    ),
    "41 lists deep": (f"seed: {'[' * 41}1{']' * 41}\n", ("c.yaml", "40 levels deep")),
    "5000 lists deep": (f"seed: {'[' * 5000}{']' * 5000}\n", ("c.yaml", "40 levels deep")),
    "5000 maps deep": (f"seed: {'{a: ' * 5000}1{'}' * 5000}\n", ("c.yaml", "40 levels deep")),
    "too large": ("# " + "x" * 210_000 + "\nseed: 1\n", ("c.yaml", "at most 200000")),
    "a class": ("model: {class_path: os.path}\n", ("c.yaml", "model.class_path", "refused")),
    "a class in a term": ("reward: {terms: [{class_path: os}]}\n", ("c.yaml", "class_path", "refused")),
    "a class by a dotted key": ("model.class_path: os.path\n", ("c.yaml", "model.class_path", "refused")),
    "a class as text": (
        "evaluation: {heldout_clip: os.path}\n",
        ("c.yaml", "evaluation.heldout_clip is os.path"),
    ),
    "another file": ("config: other.yaml\n", ("c.yaml", "config", "refused")),
    "another file as a section": ("model: other.yaml\n", ("c.yaml", "model is other.yaml")),
    "another file by a dotted key": (
        "evaluation.heldout_clip: o.yaml\n",
        ("evaluation.heldout_clip is o.yaml",),
    ),
    "a section that is a number": ("actor: 3\n", ("actor is 3", "section")),
    "a section that is null": ("actor: null\n", ("actor is None", "section")),
    "an unknown setting": ("sed: 1\n", ("unknown setting sed", "did you mean seed")),
    "an unknown nested setting": (
        "actor: {learning_rat: 1}\n",
        ("actor.learning_rat", "actor.learning_rate"),
    ),
    "a word for a number": ("seed: many\n", ("seed is many", "whole number")),
    "NaN for a number": ("seed: .nan\n", ("seed is nan", "whole number")),
    "infinity for a number": ("seed: 1e400\n", ("seed is inf", "whole number")),
    "a fraction for a count": ("num_iterations: 1.5\n", ("num_iterations is 1.5", "whole number")),
    "a number of 5000 digits": (f"seed: {'9' * 5000}\n", ("c.yaml", "digits")),
    "a seed that is too large": (f"seed: {2**40}\n", ("seed is", "2^40")),
    "null for a number": ("policy: {guidance: null}\n", ("policy.guidance is null", "number")),
    "null for a count": ("seed: 1\nnum_iterations:\n", ("num_iterations is null", "whole number")),
    "null for a weight": (
        "reward: {terms: [{name: jpeg_size, weight: null}]}\n",
        ("weight of jpeg_size is null",),
    ),
    "a list for a number": ("seed: [1]\n", ("seed is [1]", "whole number")),
    "an empty path": ("run_dir: ''\n", ("run_dir is ''", "name a folder")),
    "a blank path": ('run_dir: " \\t"\n', ("run_dir is ' \\t'", "name a folder")),
    "a NUL in a path": ('run_dir: "a\\0b"\n', ("run_dir", "NUL")),
    "an objective that is a path": ("objective: ../ppo\n", ("objective is ../ppo",)),
    "an objective that is a module": ("objective: os\n", ("objective is os", "must be one of")),
    "no terms": ("reward: {terms: []}\n", ("reward.terms is empty",)),
    "a term without a name": ("reward: {terms: [{weight: 1}]}\n", ("has no name",)),
    "an unknown term": ("reward: {terms: [{name: nswf}]}\n", ("nswf", "did you mean nsfw")),
    "a term that is a path": ("reward: {terms: [{name: ../nsfw}]}\n", ("../nsfw", "term")),
    "a term's unknown setting": ("reward: {terms: [{name: nsfw, detectr: x}]}\n", ("detectr", "detector")),
    "a term's NaN": ("reward: {terms: [{name: jpeg_size, weight: .nan}]}\n", ("weight of jpeg_size is nan",)),
    "a gate on nothing": (
        'reward: {terms: [{name: jpeg_size, only_if: "x > 1"}]}\n',
        ("only_if of jpeg_size", "x > 1"),
    ),
    "a gate that is code": (
        'reward: {terms: [{name: jpeg_size, only_if: "__import__(1)"}]}\n',
        ("only_if of jpeg_size",),
    ),
    "a condition that is no condition": ('captions: {where: "; drop"}\n', ("captions.where",)),
    "a condition that is deep": (
        f'captions: {{where: "{"(" * 90}a{")" * 90} > 1"}}\n',
        ("captions.where", "parentheses"),
    ),
    "a condition that is long": (
        f'captions: {{where: "a > 1{" or a > 1" * 900}"}}\n',
        ("captions.where", "long"),
    ),
    "shares that do not add up": ("captions: {shares: {NSFW: 0.7}}\n", ("captions.shares", "0.7")),
    "shares of nothing": ("captions: {shares: {}}\n", ("captions.shares", "{}", "null")),
    "an anchor of nothing": ("anchor: {shares: {}}\n", ("anchor.shares", "{}", "null")),
    "an evaluation of nothing": ("evaluation: {shares: {}}\n", ("evaluation.shares", "{}", "null")),
    "negative shares": ("captions: {shares: {NSFW: -1, OTHER: 2}}\n", ("captions.shares", "-1")),
}
"""What stands in the file `c.yaml`, and what the message says."""


def from_file(text: str | bytes, folder: Path) -> object:
    config, _ = parse_command_line(["--config", str(text_file(folder / "c.yaml", text))], "test", "")
    check_shares(config.captions.shares or {"all": 1})
    return read_settings(config.captions)


def from_words(words: list[str], folder: Path) -> object:
    return parse_command_line(words, "test", "")


LINES = {
    "a folder as config": (["--config", "/"], ("/", "not a file")),
    "no such config": (["--config", "/nowhere/c.yaml"], ("/nowhere/c.yaml", "not a file")),
    "config without a file": (["--config"], ("config",)),
    "a class": (["--model.class_path", "os.path"], ("model.class_path", "refused")),
    "a class in a value": (["--model={class_path: os}"], ("class_path", "refused")),
    "a class as text": (["--evaluation.heldout_clip", "os.path"], ("evaluation.heldout_clip is os.path",)),
    "a file as a section": (["--model", "/etc/hostname"], ("--model", "section")),
    "an abbreviation": (["--num_iter", "3"], ("num_iter", "num_iterations")),
    "a value twice": (["--seed", "1", "2"], ("2",)),
    "settings of another objective": (["--grpo.beta", "1"], ("grpo",)),
}


def saved_format(folder: Path) -> object:
    return load_config(text_file(folder / "config.yaml", "format: 77\nseed: 1\n"))


def saved_wrong_format(folder: Path) -> object:
    return load_config(text_file(folder / "config.yaml", "format: [2]\nseed: 1\n"))


CASES: list[Case] = (
    cases("config", [(n, functools.partial(from_file, t), words) for n, (t, words) in FILES.items()])
    + cases("options", [(n, functools.partial(from_words, w), words) for n, (w, words) in LINES.items()])
    + cases(
        "a run's config",
        [
            ("another format", saved_format, ("config.yaml", "77")),
            ("a list as format", saved_wrong_format, ("config.yaml", "format")),
            (
                "missing",
                lambda folder: load_config(folder / "config.yaml"),
                ("config.yaml", "does not exist"),
            ),
        ],
    )
)
