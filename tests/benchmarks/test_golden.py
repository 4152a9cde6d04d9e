"""The golden run's settings: all that the working tree has, and for an older tree only what it knew."""

from pathlib import Path

import pytest
from scripts import load_script

from dalle_ppo.config.objective import objective_names
from dalle_ppo.config.sections import record_names, setting_names

ROOT = Path(__file__).parents[2]
golden = load_script(ROOT / "benchmarks" / "golden.py")


def write_tree(folder: Path, module: str, names: set[str]) -> Path:
    """A package that has settings of these names, and a function to list them in `module`."""
    path = folder / "dalle_ppo" / module
    path.parent.mkdir(parents=True)
    (folder / "dalle_ppo" / "__init__.py").touch()
    path.write_text(f"def setting_names(config_class=None, prefix=''):\n    return {sorted(names)}\n")
    return folder


def test_every_later_setting_is_one_of_this_tree():
    assert set(golden.LATER_SETTINGS) <= set(setting_names())


def test_this_tree_gets_all_its_settings_but_those_of_other_objectives():
    nested, others = golden.settings_of(ROOT), {*objective_names(), "run_dir"} - {"ppo"}
    for name in set(setting_names()) - record_names():
        section, _, last = name.partition(".")
        if section not in others:
            assert last in nested[section] if last else section in nested, name


@pytest.mark.parametrize("module", ["command_line.py", "config/command_line.py"])
def test_an_older_tree_gets_what_it_knew(module, tmp_path):
    known = {*golden.FIRST, "anchor.coef"} - {"ppo.epochs"} | {"update.epochs"}
    settings = golden.settings_of(write_tree(tmp_path, module, known))
    assert settings["anchor"] == {"coef": 0.0} and "checkpoint_minutes" not in settings
    assert settings["update"] == {"epochs": 1} and "epochs" not in settings["ppo"]
    assert settings["ppo"]["learning_rate"] == 3e-3 and "actor" not in settings
    assert settings["reward"]["detector"] == "builtin" and "terms" not in settings["reward"]
