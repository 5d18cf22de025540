"""PyTorch modules by name: from timm, torchvision, MONAI, or from code that the user names and so trusts."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
    """Return a module with random weights, in evaluation mode. Runs the code that `arch` names.

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
        made = makers[place]() if place in makers else _call(_function(arch, place, name), classes)
    except SettingsError:
        raise
    # Code of others can raise anything.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SettingsError(f"--arch: {arch} can't make a model: {type(error).__name__}: {reason[:200]}") from error
    if not isinstance(made, nn.Module):
        raise SettingsError(f"--arch: expected {arch} to return a torch.nn.Module, got {type(made).__name__}")
    return made.eval()


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
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise SettingsError(f"--arch: expected a Python file, got {place}, which does not exist")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise SettingsError(
                f"--arch: module {place!r} can't be imported: {error}. Install its package, or name FILE.py:FUNCTION."
            ) from error
    if not callable(function := getattr(module, name, None)):
        raise SettingsError(f"--arch: expected a function {name!r} in {place}, got none of this name")
    return function


def _call(function: Any, classes: int) -> Any:
    """Call a factory, with the number of classes if it takes that."""
    taken = inspect.signature(function).parameters
    takes_classes = "num_classes" in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())
    with torch.random.fork_rng(devices=[]):
        return function(num_classes=classes) if takes_classes else function()
