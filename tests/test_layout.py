"""The house's own rules: where rooms lie, what they show, and who may know whom."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "plurum"
STAGES = ("benchmarks", "client", "export", "model_repository", "serving", "training")
# What runs inside Triton is no package: it is copied to where Plurum isn't installed.
INSIDE_TRITON = ("model_repository/", "serving/backends/")
# A module may import from its own room and from floors below.
FLOORS = (
    {
        *(
            "conventions",
            "decoder",
            "errors",
            "evidence",
            "file_trees",
            "files",
            "image_limits",
            "images",
            "jpeg_structure",
            "listing",
            "options",
        ),
        *(
            "manifests",
            "microns",
            "models",
            "options",
            "png_structure",
            "questions",
            "regular_files",
            "run",
            "scanners",
            "slides",
        ),
        *("spec", "spellings", "state_dicts", "telemetry", "tiff_structure", "tissue", "voting"),
    },
    {"training", "export", "serving", "client"},
    {"benchmarks", "demo"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without what runs inside Triton."""
    found = {}
    for place in (PACKAGE, *(PACKAGE / stage for stage in STAGES), PACKAGE / "cli"):
        for file in place.rglob("*.py"):
            name = file.relative_to(PACKAGE).as_posix()
            if not name.startswith(INSIDE_TRITON):
                dotted = name.removesuffix(".py").removesuffix("__init__").replace("/", ".").strip(".")
                found[f"plurum.{dotted}".strip(".")] = file
    return found


MODULES = modules()


def imports(file: Path) -> Iterator[str]:
    """Every module that `file` imports, wherever in it, by its dotted name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            # `from plurum import images` names a module; `from plurum.images import FORMATS` names one and a thing.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str:
    """The part of the house that a name such as `plurum.client.payload` belongs to."""
    return [*dotted.split("."), ""][1]


def listed(file: Path) -> list[str] | None:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if ast.unparse(target) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def natural_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as Ruff sorts them."""
    return (0 if name.isupper() else 1 if name.lstrip("_")[:1].isupper() else 2, name)


def test_all_modules_are_found() -> None:
    assert {"plurum", "plurum.spec", "plurum.client", "plurum.client.payload", "plurum.cli.main"} <= set(MODULES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_link_points_at_its_folder(stage: str) -> None:
    link = PACKAGE / stage
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", stage)
    assert (ROOT / stage).is_dir()
    assert not (ROOT / stage).is_symlink()


def test_there_are_no_other_links() -> None:
    assert sorted(path.name for path in PACKAGE.iterdir() if path.is_symlink()) == sorted(STAGES)


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_what_a_module_shows_is_listed_whole_and_sorted(name: str) -> None:
    names = listed(MODULES[name])
    body = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
    if name == "plurum.cli":
        assert len(body) == 1
        return
    assert names is not None, f"{name} has no __all__"
    assert names == sorted(names, key=natural_order)
    assert len(set(names)) == len(names)
    own = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"}
    if MODULES[name].name == "__init__.py":
        own |= {alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
        own -= {"annotations"}
    assert own <= set(names), f"{name} shows more than its __all__ lists"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_everything_listed_is_there(name: str) -> None:
    module = importlib.import_module(name)
    for listed_name in listed(MODULES[name]) or []:
        assert hasattr(module, listed_name)


@pytest.mark.parametrize("name", MODULES)
def test_no_room_knows_one_on_its_own_floor_or_above(name: str) -> None:
    own = room(name)
    if own in {"", "__main__"}:
        return
    for imported in imports(MODULES[name]):
        if not imported.startswith("plurum.") or room(imported) in {own, "__version__"}:
            continue
        other = room(imported)
        assert other in FLOOR, f"{name} imports {imported}, which stands on no floor"
        if FLOOR[own] > 0:
            assert FLOOR[other] < FLOOR[own], f"{name} imports {imported}"
        else:
            assert FLOOR[other] == 0, f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "client"])
def test_the_client_never_imports_torch(name: str) -> None:
    assert not {imported.split(".")[0] for imported in imports(MODULES[name])} & {"torch", "timm"}


@pytest.mark.parametrize("file", sorted((ROOT / "model_repository").glob("*/*.py")), ids=lambda file: file.parent.name)
def test_what_runs_inside_triton_imports_neither_torch_nor_plurum(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    # For type checkers a model names the modules that export copies beside it.
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
    assert not names & {"torch", "timm", "plurum"}


def test_no_file_of_a_room_is_called_after_nothing() -> None:
    nouns = {path.stem for path in MODULES.values()}
    assert not nouns & {"utils", "helpers", "common", "misc"}
