"""The stairs of the house, and what no file of it may do."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import galvanic

HOUSE = Path(galvanic.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
every_file = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(HOUSE)))

FLOORS = (
    {"seeding", "physics", "solve", "storage"},
    {"ranges"},  # a landing: profiles hold ranges
    {"profile", "hardware"},
    {"nn"},
    {"platforms"},
    {"equilibrium", "energy"},
    {"devices", "cost"},
    {"train"},
    {"studies"},
    {"report"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: k for k, rooms in enumerate(FLOORS) for room in rooms}


def room(file: Path) -> str:
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported anywhere in a file, inside functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    yield from ((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_every_room_has_a_floor():
    assert {room(file) for file in FILES} - {"__init__"} <= FLOOR.keys()


@every_file
def test_imports_go_down_the_stairs_or_stay_in_the_room(file):
    own = room(file)
    for name in imported(TREES[file]):
        top, _, rest = name.partition(".")
        if top != "galvanic" or rest == "__version__":
            continue
        other = rest.partition(".")[0]
        assert other == own or FLOOR[other] < FLOOR[own], f"{own} imports {name}"
        assert own != "report" or other == "report", f"the report imports {name}: it reads rows only"


def test_the_public_names_are_listed_by_hand_and_all_there():
    assert not [name for name in imported(TREES[HOUSE / "__init__.py"]) if name.startswith("galvanic")]
    assert galvanic.__all__ == ["__version__", *sorted(galvanic.__all__[1:])]
    for name in galvanic.__all__:
        assert getattr(galvanic, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'convrt'"):
        galvanic.convrt  # noqa: B018


HELP = """
import sys
from galvanic.cli import app
sys.argv = ["galvanic", "--help"]
try:
    app()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def test_help_imports_neither_torch_nor_numpy_nor_a_plot():
    ran = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "galvanic run" in ran.stdout
    assert not {"torch", "numpy", "scipy", "sklearn", "matplotlib", "pydantic"} & set(ran.stderr.split())


def test_help_takes_less_than_three_tenths_of_a_second_of_processor_time():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "galvanic", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen", "yaml.load", "pd.read_pickle"}


@every_file
def test_nothing_is_unpickled_or_evaluated(file):
    assert not {name.partition(".")[0] for name in imported(TREES[file])} & UNSAFE_MODULES
    for name, call in calls(TREES[file]):
        assert name not in UNSAFE_CALLS, f"line {call.lineno}: {name}"
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert given.get("shell", "False") == "False", f"line {call.lineno}: a shell"
        assert name not in ("np.load", "numpy.load") or given.get("allow_pickle", "False") == "False", f"line {call.lineno}: pickled arrays"
        assert "exec_module" not in name or file == HOUSE / "studies" / "user.py", f"line {call.lineno}: runs a file"


def test_one_place_runs_a_file_of_the_user_and_says_so():
    user = HOUSE / "studies" / "user.py"
    assert sum("exec_module" in name for name, _ in calls(TREES[user])) == 1
    assert "The file is executed" in user.read_text(encoding="utf-8")


PLACE = re.compile(r"(?<![\w.])(?:/(?:home|root|Users|work|tmp|var|opt|mnt|usr|etc)/\S*|[A-Z]:\\\\?\w+)|localhost|127\.0\.0\.1")
REGISTRY = re.compile(
    r"pypi\.\w+|pythonhosted|anaconda\.(?:org|com)|conda-forge|npmjs|unpkg|jsdelivr|cdnjs|proxy\.golang|crates\.io|huggingface\.co"
)
TEXTS = sorted(f for f in HOUSE.rglob("*") if f.is_file() and f.suffix != ".pyc")


@pytest.mark.parametrize("file", TEXTS, ids=lambda f: str(f.relative_to(HOUSE)))
def test_no_file_names_a_place_on_a_machine_or_a_package_registry(file):
    text = file.read_text(encoding="utf-8")
    assert not PLACE.findall(text)
    assert not REGISTRY.findall(text)
