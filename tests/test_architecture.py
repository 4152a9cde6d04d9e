"""Imports run one way, the judge stays out of training, and files are loaded safely: read from the source."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dalle_ppo"
SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "converters").glob("*.py"))
LEAVES = ("models", "rl", "rewards", "captions", "sampling", "config", "run_state", "metrics")
COMMAND_LINES = {"train", "generate", "evaluate", "pretrain", "export", "iconworld.build"}


def module_name(path: Path) -> str:
    """`rl.kl` for dalle_ppo/rl/kl.py, `rl` for the package itself."""
    if PACKAGE not in path.parents:
        return f"{path.parent.name}.{path.stem}"
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The full name that a `from` import reads from."""
    if not node.level:
        return node.module
    package = path.parent.relative_to(ROOT).parts
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, *([node.module] if node.module else [])))


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of everything a file imports, in functions too; names of `from` imports included."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, path)
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_imports(name: str) -> set[str]:
    """The project's modules that a module imports."""
    inside = {
        full.removeprefix("dalle_ppo.") for full in imports(MODULES[name]) if full.startswith("dalle_ppo.")
    }
    return {module for module in inside if module in MODULES and module != name}


def imported_packages(path: Path) -> set[str]:
    return {full.split(".")[0] for full in imports(path)}


def area(name: str) -> str:
    """Which layer a module belongs to; caption_* files are parts of captions, config_* ones of config."""
    top = name.split(".")[0]
    if top.startswith("config_"):
        return "config"
    return "captions" if top.startswith("caption_") or top == "prompt_sets" else top


def test_the_reader_sees_relative_lazy_and_package_imports():
    assert "rl.shapes" in own_imports("rl.kl")
    assert "iconworld.captions" in own_imports("caption_streams"), "an import in a function"
    assert {"config", "models.bart"} <= own_imports("build")
    assert len(MODULES) > 40


@pytest.mark.parametrize("name", [name for name in MODULES if area(name) == "rl"])
def test_rl_imports_only_torch(name):
    foreign = imported_packages(MODULES[name]) - set(sys.stdlib_module_names) - {"torch", "dalle_ppo"}
    assert not foreign
    assert {area(used) for used in own_imports(name)} <= {"rl"}


@pytest.mark.parametrize("name", [name for name in MODULES if area(name) == "models"])
def test_models_import_nothing_above(name):
    assert {area(used) for used in own_imports(name)} <= {"models"}


@pytest.mark.parametrize("name", [name for name in MODULES if area(name) in LEAVES])
def test_leaves_know_nothing_of_each_other_beyond_models_and_records(name):
    others = {used for used in own_imports(name) if area(used) not in (area(name), "models")}
    allowed = {"rl.records"}
    if name == "config_ppo":
        allowed |= {"rl.kl_placement"}  # rules about settings, without torch
    if name == "caption_streams":
        allowed |= {"iconworld", "iconworld.captions"}  # a source of captions like any file
    assert others <= allowed


@pytest.mark.parametrize(
    "name, above",
    [
        ("rollout", {"trainer", "update", "evaluation", "build", *COMMAND_LINES}),
        ("update", {"trainer", "evaluation", "build", *COMMAND_LINES}),
        ("trainer", {"evaluation", "build", *COMMAND_LINES}),
        ("evaluation", {"trainer", "update", "build", *COMMAND_LINES}),
        ("build", COMMAND_LINES),
    ],
)
def test_imports_run_one_way(name, above):
    assert not own_imports(name) & above


def test_only_command_lines_import_build():
    importers = {name for name in MODULES if "build" in own_imports(name)}
    assert importers <= COMMAND_LINES


def test_no_import_cycles():
    unfinished, done = [], set()

    def visit(name: str) -> None:
        assert name not in unfinished, f"cycle: {' -> '.join([*unfinished, name])}"
        if name in done:
            return
        unfinished.append(name)
        for used in sorted(own_imports(name)):
            visit(used)
        done.add(unfinished.pop())

    for name in MODULES:
        visit(name)


def test_the_judge_is_imported_by_evaluation_only():
    importers = {name for name in MODULES if "iconworld.judge" in own_imports(name)}
    assert importers <= {"build", "evaluate", "iconworld.card", "iconworld.build"}


TRAINING = [
    name
    for name in MODULES
    if area(name) in ("rewards", "rl", "captions") or name in ("trainer", "update", "rollout", "sampling")
]


@pytest.mark.parametrize("name", TRAINING)
def test_nothing_that_trains_reaches_the_judge(name):
    """Not through another module either."""
    reached, queue = set(), [name]
    while queue:
        for used in own_imports(queue.pop()) - reached:
            reached.add(used)
            queue.append(used)
    assert "iconworld.judge" not in reached


def calls(path: Path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_are_loaded_strictly_and_safely(path):
    for function, keywords in calls(path):
        strict = keywords.get("strict")
        if function.endswith("load_state_dict"):
            assert strict is None or ast.unparse(strict) == "True", (
                f"{function}(strict={ast.unparse(strict)})"
            )
        weights_only = keywords.get("weights_only")
        if weights_only is not None:
            assert ast.unparse(weights_only) == "True"
        if function in ("torch.load", "load") and "torch" in function:
            assert weights_only is not None, "torch.load without weights_only=True runs pickled code"
        assert function not in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.load")


def test_min_dalle_is_imported_in_one_place_and_lazily():
    """Importing it switches gradients off and sets the thread count for the whole process."""
    importers = [path for path in SOURCES if "min_dalle" in imported_packages(path)]
    assert len(importers) <= 1
    for path in importers:
        for node in tree(path).body:
            assert not (isinstance(node, ast.Import | ast.ImportFrom) and "min_dalle" in ast.unparse(node))


@pytest.mark.parametrize("name", sorted(COMMAND_LINES & set(MODULES) | {"config", "command_line"}))
def test_command_lines_import_torch_lazily(name):
    """`--help` answers at once, so nothing that a command line imports at its top may import torch."""
    reached, queue = set(), [name]
    while queue:
        module = queue.pop()
        path = MODULES[module]
        for node in tree(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names]
                source = absolute(node, path) if isinstance(node, ast.ImportFrom) else ""
                full = {source, *(f"{source}.{n}" if source else n for n in names)}
                assert not {f.split(".")[0] for f in full} & {"torch", "open_clip", "tensorflow"}, module
                inside = {f.removeprefix("dalle_ppo.") for f in full} & set(MODULES)
                queue += inside - reached
                reached |= inside
