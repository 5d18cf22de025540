"""PyTorch modules by name: from timm, torchvision, MONAI, or from code that the user names and so trusts."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plurum.errors import SettingsError
from plurum.models import create_model
from plurum.spellings import nearest_name

__all__ = ["LogitsModel", "is_timm", "module_from_arch"]

_EXPECTED = "expected a timm name, torchvision:NAME, monai:NAME, package.module:FUNCTION or FILE.py:FUNCTION"


class LogitsModel(nn.Module):
    """Module that returns the logits of another one as a tensor.

    Args:
        model: Module that returns a tensor, or an object with the attribute `logits`, as those of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, `[batch, classes]`.

        Raises:
            SettingsError: the module returns neither a tensor nor logits.
        """
        found = self.model(images)
        logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
        if not isinstance(logits, Tensor):
            raise SettingsError(
                f"--arch: expected a model that returns a tensor or .logits, got {type(found).__name__}"
            )
        return logits


def is_timm(arch: str) -> bool:
    """Return True for the name of a timm architecture; all others have a colon."""
    return ":" not in arch


def module_from_arch(arch: str, classes: int) -> nn.Module:
    """Return a module with random weights, on the CPU in float32, in evaluation mode. Runs the code that `arch` names.

    Args:
        arch: `torchvision:NAME`, `monai:NAME`, `package.module:FUNCTION` or `FILE.py:FUNCTION`; or a timm name.
        classes: Number of classes, passed to functions that take `num_classes`.

    Raises:
        SettingsError: there is no such module or function, or it fails or returns no module.
    """
    if is_timm(arch):
        return create_model(arch, classes)
    place, _, name = arch.rpartition(":")
    makers: dict[str, Callable[[], Any]] = {
        "torchvision": lambda: _from_torchvision(name, classes),
        "monai": lambda: _from_monai(name, classes),
    }
    try:
        # Standard output is for results.
        with contextlib.redirect_stdout(sys.stderr), _finding_modules_of(place):
            made = makers[place]() if place in makers else _call(_function(arch, place, name), arch, classes)
    except SettingsError:
        raise
    # Code of others can raise anything; one that reads the command line exits.
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SettingsError(f"--arch: {arch} can't make a model: {type(error).__name__}: {reason[:200]}") from error
    if not isinstance(made, nn.Module):
        raise SettingsError(f"--arch: expected {arch} to return a torch.nn.Module, got {type(made).__name__}")
    model = _unwrap(made)
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        raise SettingsError(
            f"--arch: expected layers with sizes, got lazy ones from {arch}. Predict an image with it first."
        )
    return model.cpu().float().eval()


def _unwrap(model: nn.Module) -> nn.Module:
    """Return a model without torch.compile, which needs a compiler, and without copies for other devices."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return _unwrap(inner) if isinstance(inner, nn.Module) else model


def _from_torchvision(name: str, classes: int) -> nn.Module:
    import torchvision

    if name not in (known := torchvision.models.list_models(module=torchvision.models)):
        raise SettingsError(_unknown("torchvision", name, known))
    # Those with a second classifier for training need no weights of it to predict, but their files have them.
    made: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return made


def _from_monai(name: str, classes: int) -> Any:
    try:
        nets = importlib.import_module("monai.networks.nets")
    except ImportError as error:
        raise SettingsError(f"--arch: monai:{name} needs MONAI. Install it: pip install monai") from error
    if not isinstance(maker := getattr(nets, name, None), type):
        known = [key for key, value in vars(nets).items() if isinstance(value, type)]
        raise SettingsError(_unknown("monai", name, known))
    taken = inspect.signature(maker).parameters
    given = {"spatial_dims": 2, "in_channels": 3, "out_channels": classes, "num_classes": classes}
    return maker(**{key: value for key, value in given.items() if key in taken})


def _unknown(library: str, name: str, known: list[str]) -> str:
    near = nearest_name(name, known)
    return f"--arch: {library} has no model {name!r}" + (f"; the nearest name is {near}" if near else "")


def _function(arch: str, place: str, name: str) -> Any:
    """Return the function that the user names; its module's code is run."""
    if not place or not name.isidentifier():
        raise SettingsError(f"--arch: {_EXPECTED}, got {arch!r}")
    module = _module_in_file(Path(place)) if place.endswith(".py") else _module_in_package(place)
    if not callable(function := getattr(module, name, None)):
        raise SettingsError(f"--arch: expected a function {name!r} in {place}, got none of this name")
    return function


def _module_in_file(file: Path) -> ModuleType:
    """Return the module in a file of the user's."""
    if not file.is_file():
        raise SettingsError(f"--arch: expected a Python file, got {file}, which does not exist")
    # Dataclasses look their module up by its name.
    spec = importlib.util.spec_from_file_location(f"plurum_member_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise SettingsError(f"--arch: expected a Python file, got {file}")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _module_in_package(name: str) -> ModuleType:
    """Return a module of an installed package, or of one in the current folder."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"--arch: module {name!r} can't be imported: {error}. Install its package, or name FILE.py:FUNCTION."
        ) from error


@contextlib.contextmanager
def _finding_modules_of(place: str) -> Iterator[None]:
    """Let imports find modules beside a file, as in a script, or after all others those in the current folder."""
    is_file = place.endswith(".py")
    folder = str(Path(place).resolve().parent if is_file else Path.cwd())
    is_added = is_file or folder not in sys.path
    if is_added:
        sys.path.insert(0 if is_file else len(sys.path), folder)
    try:
        yield
    finally:
        if is_added:
            sys.path.remove(folder)


def _call(function: Any, arch: str, classes: int) -> Any:
    """Call a factory, with the number of classes if it takes that."""
    taken = inspect.signature(function).parameters
    named = taken.get("num_classes")
    others = [
        one.name
        for one in taken.values()
        if one is not named and one.default is one.empty and one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
    ]
    if others:
        raise SettingsError(
            f"--arch: expected a function that takes num_classes or nothing, got {arch}, which needs "
            f"{', '.join(others)}. Name a function that passes them."
        )
    takes_classes = named is not None or any(one.kind is one.VAR_KEYWORD for one in taken.values())
    with torch.random.fork_rng(devices=[]):
        if named is not None and named.kind is named.POSITIONAL_ONLY:
            return function(classes)
        return function(num_classes=classes) if takes_classes else function()
