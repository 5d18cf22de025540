"""Structure of the packages: links, sizes, public names. `make lint` checks the layers in pyproject.toml."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from pathlib import Path

from importlinter.api import read_configuration

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "plurum"
STAGES = ("benchmarks", "client", "export", "model_repository", "serving", "training")
FOLDERS = [*STAGES, "src", "tests"]
# Files that run inside Triton are not a package: they are copied to where Plurum isn't installed.
INSIDE_TRITON = ("model_repository/", "serving/backends/")
MOST_MODULES = 18


def modules() -> dict[str, Path]:
    """Return every module by its dotted name, without those that run inside Triton."""
    found = {}
    for place in (PACKAGE, *(PACKAGE / stage for stage in STAGES)):
        for file in place.rglob("*.py"):
            name = file.relative_to(PACKAGE).as_posix()
            if not name.startswith(INSIDE_TRITON):
                dotted = name.removesuffix(".py").removesuffix("__init__").replace("/", ".").strip(".")
                found[f"plurum.{dotted}".strip(".")] = file
    return found


MODULES = modules()


def public_names(body: list[ast.stmt]) -> list[str] | None:
    for node in body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if ast.unparse(target) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def natural_order(name: str) -> tuple[int, str]:
    """Sort constants first, then classes, then the rest, as Ruff does."""
    return (0 if name.isupper() else 1 if name.lstrip("_")[:1].isupper() else 2, name)


def test_all_modules_are_found() -> None:
    assert {"plurum", "plurum.spec", "plurum.client", "plurum.client.connection.payload", "plurum.cli.main"} <= set(
        MODULES
    )


def test_the_page_of_the_architecture_names_the_layers() -> None:
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layers = {one["containers"][0]: one["layers"] for one in contracts if one["type"] == "layers"}
    (block,) = re.findall(r"```text\n(cli\n.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    told: dict[str, list[str]] = {"plurum": []}
    for line in block.splitlines():
        names, _, inside = line.strip().partition("  ")
        if not line.startswith(" "):
            told["plurum"].append(names)
        if inside:
            told[f"plurum.{names}"] = inside.strip().split(" > ")
    for package, expected in layers.items():
        named = [name.replace(" | ", ", ") for name in expected if name != "__main__"]
        assert [", ".join(sorted(name.split(", "))) for name in told.pop(package)] == named
    assert not told


def test_the_stages_are_the_only_links() -> None:
    assert sorted(path.name for path in PACKAGE.iterdir() if path.is_symlink()) == sorted(STAGES)
    for stage in STAGES:
        assert (PACKAGE / stage).readlink() == Path("..", "..", stage)
        assert (ROOT / stage).is_dir()
        assert not (ROOT / stage).is_symlink()


def test_no_folder_holds_more_modules_than_a_reader_can_survey() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if file.name != "__init__.py"]
    counts = Counter(file.parent.relative_to(ROOT).as_posix() for file in files)
    assert counts["training/learning"] > 5
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_public_names_are_complete_sorted_and_there() -> None:
    for name, file in MODULES.items():
        body = ast.parse(file.read_text(encoding="utf-8")).body
        # A package that only groups modules has only a docstring.
        if name.endswith("__main__") or len(body) == 1:
            continue
        names = public_names(body)
        assert names is not None, f"{name} has no __all__"
        assert names == sorted(set(names), key=natural_order), f"{name}.__all__ is not sorted, or names one twice"
        own = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"}
        if file.name == "__init__.py":
            own |= {
                alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names
            }
            own -= {"annotations"}
        assert own <= set(names), f"{name} shows more than its __all__ lists"
        module = importlib.import_module(name)
        assert [one for one in names if not hasattr(module, one)] == [], name


def test_what_runs_inside_triton_imports_neither_torch_nor_plurum() -> None:
    files = [*(ROOT / "model_repository").glob("*/*.py"), *(ROOT / "serving" / "backends").glob("*/*.py")]
    assert len(files) > 6
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        # For type checkers, a model imports the modules that export copies beside it.
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        names = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not names & {"torch", "timm", "plurum"}, file


def test_no_module_has_a_meaningless_name() -> None:
    assert not {path.stem for path in MODULES.values()} & {"utils", "helpers", "common", "misc"}


def test_no_test_module_imports_another() -> None:
    """What tests share is in modules of its own: pytest imports tests and conftest.py files itself."""
    files = [*(ROOT / "tests").rglob("*.py")]
    assert len(files) > 200
    for file in files:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        last = {name.rpartition(".")[2] for name in names if name.startswith("tests.")}
        assert [name for name in last if name.startswith("test_") or name == "conftest"] == [], file
