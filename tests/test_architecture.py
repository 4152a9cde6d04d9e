"""The floors of the house, read from the source: who imports whom, how large parts are, safe loading."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dalle_ppo"
# A folder imports from floors below its own only. Modules of the package's root are the command lines.
FLOORS = {
    "base": 0,
    "captions": 1,
    "rl": 1,
    "models": 2,
    "policy": 3,
    "rewards": 3,
    "config": 4,
    "runs": 5,
    "training": 6,
    "evaluation": 6,
    "iconworld": 7,
    "preferences": 7,
    "report": 7,
    "build": 8,
}
TOP_FLOOR = 9
COMMAND_LINES = (
    "train", "generate", "evaluate", "pretrain", "export", "detector", "label", "iconworld.build",
    "captions.__main__", "preferences.__main__", "reward_model", "align",
)  # fmt: skip
MAX_PARAMETERS, MAX_FUNCTION_LINES, MAX_FILE_LINES = 7, 60, 400
KERNELS = "models.dalle.kernels"
JUDGE = "iconworld.judge"
HEAVY = {
    "torch",
    "min_dalle",
    "open_clip",
    "tensorflow",
    "keras",
    "transformers",
    "pyarrow",
    "matplotlib",
    "peft",
}
# Rules that a module does not keep yet, each `(rule, module)`. A case that passes fails as "XPASS(strict)":
# then its entry goes.
UNFINISHED: set[tuple[str, str]] = set()


def module_name(path: Path) -> str:
    """`rl.kl` for dalle_ppo/rl/kl.py, `rl` for the folder's __init__.py, "" for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
CONVERTERS = {f"converters/{path.name}": path for path in sorted((ROOT / "converters").glob("*.py"))}


def cases(rule: str, names=MODULES) -> pytest.MarkDecorator:
    """A parametrisation over modules; those that do not keep the rule yet must fail."""
    unfinished = pytest.mark.xfail(strict=True, reason="not done yet")
    params = [pytest.param(name, marks=unfinished if (rule, name) in UNFINISHED else ()) for name in names]
    return pytest.mark.parametrize("name", params, ids=[name or "dalle_ppo" for name in names])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_by(node: ast.AST) -> set[str]:
    """Full names that one import statement reads, `a.b` and `a.b.c` for `from a.b import c`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        source = "." * node.level + (node.module or "")
        return {source} | {f"{source}.{alias.name}" for alias in node.names}
    return set()


def all_imports(root: ast.AST) -> set[str]:
    """Full names of everything that is imported, in functions too."""
    return {name for node in ast.walk(root) for name in imported_by(node)}


def imports_at_once(root: ast.AST) -> set[str]:
    """What importing a module imports: not what its functions import, nor what type checkers alone see."""
    found = set()
    for node in ast.iter_child_nodes(root):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        found |= imported_by(node) | imports_at_once(node)
    return found


def own(imports: set[str]) -> set[str]:
    """The project's modules among imported names, without the package's prefix."""
    return {name.removeprefix("dalle_ppo.") for name in imports if name.startswith("dalle_ppo.")} & set(
        MODULES
    )


def reached(name: str, imports=all_imports) -> set[str]:
    """The project's modules that a module imports, directly or through others."""
    found, queue = set(), [name]
    while queue:
        new = own(imports(tree(MODULES[queue.pop()]))) - found
        found |= new
        queue += new
    return found


def room(name: str) -> str:
    """A module's folder; a command line is a room of its own."""
    return name if name in COMMAND_LINES else name.split(".")[0]


def floor(name: str) -> int:
    return TOP_FLOOR if name in COMMAND_LINES else FLOORS[room(name)]


def not_below(name: str, imports: set[str]) -> set[str]:
    """Modules among imported names that lie in another room and not on a lower floor."""
    return {used for used in own(imports) if room(used) != room(name) and floor(used) >= floor(name)}


def functions(root: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(root) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def num_parameters(function: ast.FunctionDef) -> int:
    """Without self and cls."""
    given = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return sum(parameter.arg not in ("self", "cls") for parameter in given)


def is_public(function: ast.FunctionDef) -> bool:
    return function.name == "__init__" or not function.name.startswith("_")


# --- the readers above


def test_the_readers_see_what_they_shall():
    source = ast.parse(
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import types_only\n"
        "try:\n    import tried\nexcept ImportError:\n    pass\n"
        "class C:\n    import in_class\n"
        "    def f(self, a, /, b, *, c):\n        from dalle_ppo.rl import kl\n"
        "from . import x\n"
    )
    assert {"a.b", "types_only", "dalle_ppo.rl.kl", ".", "in_class"} <= all_imports(source)
    at_once = imports_at_once(source)
    assert {"a.b", "tried", "in_class"} <= at_once and not {"types_only", "dalle_ppo.rl.kl"} & at_once
    assert [num_parameters(f) for f in functions(source)] == [3]
    assert not_below("models.clip", {"dalle_ppo.rl.kl", "dalle_ppo.models.heads.nsfw", "torch"}) == set()
    assert not_below("rl.kl", {"dalle_ppo.captions.text"}) == {"captions.text"}, "sideways"
    assert not_below("rl.kl", {"dalle_ppo.config.settings"}) == {"config.settings"}, "upwards"
    assert not_below("evaluate", {"dalle_ppo.train.main", "dalle_ppo.train"}) == {"train"}


def test_nothing_is_left_out():
    assert len(MODULES) > 80
    assert set(COMMAND_LINES) <= set(MODULES)
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.rglob("*.py"))}
    assert folders == set(FLOORS), "a new folder needs its floor in FLOORS"
    assert {name for _, name in UNFINISHED} <= set(MODULES), "an entry of UNFINISHED names no module"


# --- floors


def test_the_root_holds_the_command_lines_alone():
    in_the_root = {name for name in COMMAND_LINES if "." not in name}
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *in_the_root}


@cases("floors", [name for name in MODULES if name])
def test_imports_come_from_floors_below(name):
    assert not not_below(name, all_imports(tree(MODULES[name])))


@cases("absolute imports")
def test_imports_are_absolute(name):
    assert not {used for used in all_imports(tree(MODULES[name])) if used.startswith(".")}


def test_no_import_cycles():
    unfinished, done = [], set()

    def visit(name: str) -> None:
        assert name not in unfinished, f"cycle: {' -> '.join([*unfinished, name])}"
        if name in done:
            return
        unfinished.append(name)
        for used in sorted(own(all_imports(tree(MODULES[name]))) - {name}):
            visit(used)
        done.add(unfinished.pop())

    for name in MODULES:
        visit(name)


@cases("init", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_an_init_says_what_lives_there_and_does_nothing(name):
    (docstring,) = tree(MODULES[name]).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value.value, str)


@cases("rl imports", [name for name in MODULES if room(name) == "rl"])
def test_rl_imports_torch_alone(name):
    packages = {used.split(".")[0] for used in all_imports(tree(MODULES[name]))}
    assert packages <= {"torch", "dalle_ppo", *sys.stdlib_module_names}


@cases("Bart", MODULES)
def test_only_dalle_and_what_makes_the_world_name_its_networks(name):
    """Everything else works on the protocol of a policy family."""
    if not name.startswith(("models.dalle", "iconworld.making")):
        assert "Bart" not in MODULES[name].read_text(encoding="utf-8")


# --- the judge


def test_the_judge_is_imported_by_evaluation_and_its_makers_only():
    importers = {name for name, path in MODULES.items() if JUDGE in own(all_imports(tree(path)))}
    assert {room(name) for name in importers} == {"build", "iconworld", "iconworld.build"}
    assert {name for name in importers if room(name) == "iconworld"} == {"iconworld.making.card"}


TRAINS = [name for name in MODULES if name and room(name) != "build" and floor(name) < FLOORS["iconworld"]]
WORLD = ["iconworld.captions", "iconworld.scenes", "iconworld.stream", "iconworld.world"]


@cases("judge", TRAINS + WORLD)
def test_nothing_that_trains_reaches_the_judge(name):
    """Not through another module either."""
    assert JUDGE not in reached(name)


def test_building_a_trainer_does_not_build_the_judge():
    """`build` serves training and evaluation, so its functions are followed by the names they use."""
    sources = [tree(path) for name, path in MODULES.items() if room(name) == "build"]
    for source in sources:
        assert JUDGE not in own(imports_at_once(source)), "the judge is imported where a function needs it"
    defined = {function.name: function for source in sources for function in functions(source)}
    judging = {name for name, function in defined.items() if JUDGE in own(all_imports(function))}
    assert judging and "build_trainer" in defined
    used, queue = set(), ["build_trainer"]
    while queue:
        body = ast.walk(defined[queue.pop()])
        names = {node.id for node in body if isinstance(node, ast.Name)} & set(defined)
        queue += names - used
        used |= names
    assert len(used) > 3 and not used & judging


# --- loading


def unsafe_calls(root: ast.AST) -> list[str]:
    """Calls that run what a file holds, or take a file that does not fit."""
    found = []
    for node in ast.walk(root):
        if not isinstance(node, ast.Call):
            continue
        function, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        loads = function == "torch.load" and keywords.get("weights_only") != "True"
        pickled = keywords.get("weights_only", "True") != "True" or keywords.get("allow_pickle") == "True"
        loose = function.endswith("load_state_dict") and keywords.get("strict", "True") != "True"
        runs = function in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.load", "yaml.unsafe_load")
        if loads or pickled or loose or runs:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "call, unsafe",
    [
        ("torch.load(p)", True),
        ("torch.load(p, weights_only=False)", True),
        ("torch.load(p, weights_only=True)", False),
        ("m.load_state_dict(t, strict=False)", True),
        ("m.load_state_dict(t)", False),
        ("np.load(p, allow_pickle=True)", True),
        ("yaml.load(p)", True),
        ("yaml.safe_load(p)", False),
    ],
)
def test_the_reader_of_calls(call, unsafe):
    assert bool(unsafe_calls(ast.parse(call))) == unsafe


@cases("loading", MODULES | CONVERTERS)
def test_files_are_loaded_strictly_and_safely(name):
    assert not unsafe_calls(tree((MODULES | CONVERTERS)[name]))


def test_min_dalle_is_imported_in_one_place_and_lazily():
    """Importing it switches gradients off and sets the thread count for the whole process."""
    sources = [tree(path) for path in (MODULES | CONVERTERS).values()]
    assert sum("min_dalle" in {used.split(".")[0] for used in all_imports(source)} for source in sources) <= 1
    assert not any("min_dalle" in {used.split(".")[0] for used in imports_at_once(s)} for s in sources)


LIGHT = [*COMMAND_LINES, *(name for name in MODULES if room(name) in ("config", "base"))]


@cases("light", LIGHT)
def test_command_lines_and_settings_import_nothing_heavy(name):
    """`--help` answers at once, and a wrong setting is found at once."""
    modules = {name} | reached(name, imports_at_once)
    packages = {used.split(".")[0] for m in modules for used in imports_at_once(tree(MODULES[m]))}
    assert not packages & HEAVY


def test_help_starts_without_torch():
    """The same from a real process, which also sees what other packages import."""
    lines = [f"import dalle_ppo.{name}" for name in COMMAND_LINES]
    code = "\n".join([*lines, "import sys", "print('torch' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- sizes


@cases("parameters", [name for name in MODULES if name != KERNELS])
def test_public_functions_take_few_parameters(name):
    counted = {f.name: num_parameters(f) for f in functions(tree(MODULES[name])) if is_public(f)}
    assert not {function: number for function, number in counted.items() if number > MAX_PARAMETERS}


@cases("function lines", [name for name in MODULES if name != KERNELS])
def test_functions_are_short(name):
    lines = {f.name: f.end_lineno - f.lineno + 1 for f in functions(tree(MODULES[name]))}
    assert not {function: number for function, number in lines.items() if number > MAX_FUNCTION_LINES}


@cases("file lines", [name for name in MODULES if name != KERNELS])
def test_files_are_short(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


# --- tests


def test_tests_lie_in_the_folders_of_what_they_test():
    tests = ROOT / "tests"
    for path in tests.rglob("test_*.py"):
        folder = path.parent.relative_to(tests)
        if folder.parts and folder.parts[0] not in ("benchmarks", "command_lines", "bad_input"):
            assert (PACKAGE / folder).is_dir(), path
