"""Checkpoints, broken at random: whole tensors of finite numbers, or one line; and no code is run."""

from __future__ import annotations

import io
import random
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from plurum.state_dicts import StateDict, read_state_dict
from tests.checkpoint_garbage import garbage
from tests.fuzz.mutations import Fuzz, broken_bytes, broken_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_WEIGHTS = {
    "conv.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2),
    "bn.running_var": torch.ones(2, dtype=torch.float16),
    "bn.num_batches_tracked": torch.tensor(7),
}


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Limit memory, so that an endless allocation fails the test instead of the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def saved(held: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(held, file, **options)
    return file.getvalue()


def wholes(planted: Path) -> list[bytes]:
    averaged = {f"module.{name}": value for name, value in _WEIGHTS.items()}
    wrapped = {"epoch": 3, "model": _WEIGHTS, "model_ema": averaged}
    return [
        saved(_WEIGHTS),
        saved(wrapped),
        saved(wrapped, _use_new_zipfile_serialization=False),
        save(_WEIGHTS),
        *garbage(_WEIGHTS, planted).values(),
    ]


def with_broken_record(draw: random.Random, data: bytes) -> bytes:
    """Return a ZIP with correct checksums and one broken record, usually the pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, "w") as after:
        names = before.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = draw.choice(pickles if pickles and draw.random() < 0.8 else names)
        for name in names:
            held = before.read(name)
            after.writestr(name, broken_bytes(draw, held, 3) if name == chosen else held)
    return file.getvalue()


def with_broken_header(draw: random.Random, data: bytes) -> bytes:
    """Return safetensors whose header is JSON, with odd values in it."""
    import json

    length = int.from_bytes(data[:8], "little")
    header = broken_json(draw, json.loads(data[8 : 8 + length]))
    return draw.choice((len(header), len(header), length, 2**62)).to_bytes(8, "little") + header + data[8 + length :]


def test_checkpoints(tmp_path: Path) -> None:
    fuzz, path, planted = Fuzz("checkpoints"), tmp_path / "weights.pt", tmp_path / "planted"
    corpus = [data for data in wholes(planted) if len(data) < 1 << 20]
    for draw in fuzz.draws():
        content = draw.choice(corpus[:4] if draw.random() < 0.7 else corpus)
        if content.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(content)) and draw.random() < 0.7:
            content = with_broken_record(draw, content)
        elif content[8:9] == b"{" and content == corpus[3] and draw.random() < 0.6:
            content = with_broken_header(draw, content)
        else:
            content = broken_bytes(draw, content, 3)
        path.write_bytes(content)
        state: StateDict | None = fuzz.fed(lambda: read_state_dict(path), content)
        assert not planted.exists(), f"{fuzz}: code was run for {content!r}"
        for name, tensor in (state.tensors if state else {}).items():
            assert isinstance(name, str)
            assert tensor.numel() * tensor.element_size() <= len(content)
            assert torch.isfinite(tensor.detach().clone().contiguous()).all(), f"{fuzz}: {name} in {content!r}"
