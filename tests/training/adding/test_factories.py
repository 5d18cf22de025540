"""Code that makes models, as users write it: it may import, print and keep data classes, and its faults are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from plurum.errors import SettingsError
from plurum.training.adding.factories import module_from_arch

MEMBER = """
from __future__ import annotations
import sys
from dataclasses import dataclass
from torch import nn
from beside_member import layer

@dataclass
class Config:
    classes: int = 3

def plain(num_classes): return layer(Config(num_classes).classes)
def positional(num_classes, /): return layer(num_classes)
def late():
    from late_member import make
    return make()
def loud(num_classes):
    print("making a model")
    return layer(num_classes)
def optional(num_classes=3, width=2, *names, **others): return layer(num_classes)
def half(): return layer(3).half()
def parallel(): return nn.DataParallel(layer(3))
def compiled(): import torch; return torch.compile(layer(3))
def lazy(): return nn.LazyLinear(3)
def other_name(n_classes): return layer(n_classes)
def exits(): sys.exit("needs --data")
def fails(): raise RuntimeError("first line\\nsecond line")
def nothing(): return None
"""


@pytest.fixture
def member(tmp_path: Path) -> Path:
    (tmp_path / "beside_member.py").write_text(
        "from torch import nn\ndef layer(classes): return nn.Linear(2, classes)\n"
    )
    (tmp_path / "late_member.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 3)\n")
    (tmp_path / "member.py").write_text(MEMBER)
    return tmp_path / "member.py"


@pytest.mark.parametrize("name", ["plain", "positional", "late", "loud", "optional", "half", "parallel", "compiled"])
def test_functions_make_models(name: str, member: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = module_from_arch(f"{member}:{name}", 3)
    assert isinstance(made, nn.Linear)
    assert (made.out_features, made.weight.dtype) == (3, torch.float32)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "making a model\n" if name == "loud" else "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "other_name",
            "expected a function that takes num_classes or nothing, got .*:other_name, which needs n_classes",
        ),
        ("exits", "can't make a model: SystemExit: needs --data"),
        ("fails", "can't make a model: RuntimeError: first line$"),
        ("lazy", "expected layers with sizes, got lazy ones from .*Predict an image"),
        ("nothing", "to return a torch.nn.Module, got NoneType"),
    ],
)
def test_faults_of_functions_are_told(name: str, message: str, member: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        module_from_arch(f"{member}:{name}", 3)


def test_a_package_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "small.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 3)\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(module_from_arch("own_nets.small:make", 3), nn.Linear)
