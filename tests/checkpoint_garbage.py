"""Invalid and untrusted checkpoints."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

ARCH = "test_resnet"
# Change a storage of 4 numbers in a pickle to 2 ** 29 numbers.
_MORE = (b"cpuq\x06K\x04t", b"cpuq\x06J\0\0\0\x20t")


class Planted:
    """Pickle that writes a file when it is loaded without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "run"))


def garbage(weights: dict[str, torch.Tensor], planted: Path) -> dict[str, bytes]:
    """Return invalid checkpoints by description."""

    def saved(held: object, **options: Any) -> bytes:
        file = io.BytesIO()
        torch.save(held, file, **options)
        return file.getvalue()

    def zipped(data: bytes, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, "w", compression) as after:
            for one in before.infolist():
                after.writestr(one.filename, change(before.read(one)))
        return file.getvalue()

    def tensors(header: object, data: bytes = b"\0" * 4, length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def entry(start: int, end: int, shape: object = (1,), kind: str = "F32") -> dict[str, Any]:
        return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}

    whole = saved(weights)
    quarter = saved({"w": torch.zeros(4)})
    scripted = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = saved({"w": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)})
        nested = saved({"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])})
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), scripted)
    return {
        "empty": b"",
        "text": b"These are no weights, but the notes of somebody who named them weights.pt\n" * 3,
        "a word": b"hello",
        "numbers": b"0.1 0.2 0.3\n",
        "a dot": b".",
        "an image": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
        "HTML": b"<!DOCTYPE html><title>Not found</title>",
        "truncated": whole[: len(whole) // 2],
        "a truncated pickle": saved(weights, _use_new_zipfile_serialization=False)[:-100],
        "a ZIP of something else": zipped(whole, lambda _: b""),
        "a compressed ZIP": zipped(whole, lambda data: data, zipfile.ZIP_DEFLATED),
        "a whole model": saved(timm.create_model(ARCH)),
        "code": saved({"state_dict": weights, "more": Planted(planted)}),
        "code alone": pickle.dumps(Planted(planted)),
        "code in the first format": saved(Planted(planted), _use_new_zipfile_serialization=False),
        "TorchScript": scripted.getvalue(),
        "a list": saved([1, 2]),
        "nothing": saved({}),
        "only an optimiser": saved({"optimizer": {"lr": 0.1}, "epoch": 3}),
        "numbers for names": saved({1: torch.zeros(2)}),
        "a lone tensor": saved(torch.zeros(2)),
        "more than the file": zipped(quarter, lambda data: data.replace(b"cpuq\x06K\x04t", b"cpuq\x06J\0\0\0\x20t")),
        "one number for all": saved({"w": torch.zeros(1).expand(1 << 40)}),
        "quantised": quantised,
        "nested": nested,
        "sparse": saved({"w": torch.zeros(4).to_sparse()}),
        "without values": saved({"w": torch.zeros(4, device="meta")}),
        "complex": saved({"w": torch.zeros(4, dtype=torch.complex64)}),
        "safetensors without end": tensors({"a": entry(0, 4)}, length=10**18),
        "safetensors of no size": tensors({"a": entry(0, 4)}, length=2**64 - 1),
        "overlapping": tensors({"a": entry(0, 4), "b": entry(0, 4)}),
        "negative": tensors({"a": entry(-4, 0)}),
        "beyond the end": tensors({"a": entry(0, 8, [2])}),
        "an unknown type": tensors({"a": entry(0, 4, kind="Q4")}),
        "a name twice": tensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 4)).encode(),) * 2)),
        "a shape beyond numbers": tensors({"a": entry(0, 0, [0, 2**63])}, b""),
        "a shape beyond memory": tensors({"a": entry(0, 4, [2**40, 2**40])}),
        "brackets": tensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "no tensor": tensors({}, b""),
        "half a header": tensors({"a": entry(0, 4)})[:20],
        "complex safetensors": tensors({"a": entry(0, 8, kind="C64")}, b"\0" * 8),
    }
