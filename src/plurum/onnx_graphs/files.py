"""Reading of untrusted ONNX files: no code is run, and no file is read but the graph's own weights beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plurum.errors import MetadataError, needs_extra
from plurum.regular_files import check_regular, open_regular, read_regular

__all__ = ["read_onnx", "tensors_of"]

# Protobuf's limit, which the converted graph must keep, too.
_MAX_BYTES = (1 << 31) - 1
_STANDARD = {"", "ai.onnx"}
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_NAMED = 3


def read_onnx(path: Path) -> Any:
    """Return the ONNX model in the file `path`, with its weights inside, and with its functions inlined.

    Weights in a file of their own are read only if that is a regular file in the same folder.

    Raises:
        MetadataError: the file is no valid ONNX, has operators outside the standard, control flow or random operators,
            is too large, or names weights elsewhere.
        MissingExtraError: onnx is not installed.
    """
    with needs_extra("export", "onnx"):
        import onnx
        from onnx import inliner
    try:
        model = onnx.load_model_from_string(read_regular(path, _MAX_BYTES))
    except OSError as error:
        raise MetadataError(f"{path} can't be read: {error.strerror}") from error
    # On untrusted bytes, protobuf raises its own kind of error, which depends on its implementation.
    except Exception as error:
        raise MetadataError(f"{path} is not an ONNX file: {_first_line(error)}. Export the model again.") from error
    if not model.graph.node:
        raise MetadataError(f"{path} is not an ONNX file: its graph has no operator. Export the model again.")
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        _embed_weights(path, model)
        _check_operators(path, model)
        onnx.checker.check_model(model, full_check=True)
    except MetadataError:
        raise
    # The checker, shape inference and the inliner have no common class of errors.
    except Exception as error:
        raise MetadataError(f"{path} is not valid ONNX: {_first_line(error)}. Export the model again.") from error
    return model


def tensors_of(model: Any) -> Iterator[Any]:
    """Yield all dense tensors of a model: weights, and constants of nodes."""
    yield from model.graph.initializer
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)
    yield from _tensors_of_nodes(model.graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_operators(path: Path, model: Any) -> None:
    """Check that the graph has only standard operators that answer at once and always alike."""
    if foreign := sorted({node.domain for node in model.graph.node} - _STANDARD):
        names = sorted({node.op_type for node in model.graph.node if node.domain not in _STANDARD})
        raise MetadataError(
            f"{path}: expected only operators of the ONNX standard, got {_some(names)} of {', '.join(foreign)}. Export "
            f"the model without custom operators and without a runtime's optimisations."
        )
    inner = {
        node.op_type for node in model.graph.node if any(one.HasField("g") or one.graphs for one in node.attribute)
    }
    if inner:
        raise MetadataError(
            f"{path}: expected no control flow, got {_some(sorted(inner))}. Export the model for inference, with fixed "
            f"height and width."
        )
    if random := {node.op_type for node in model.graph.node} & _RANDOM:
        raise MetadataError(
            f"{path}: expected the same prediction every time, got {_some(sorted(random))}. Export the model in "
            f"evaluation mode."
        )
    attributes = [one for node in model.graph.node for one in node.attribute]
    if model.graph.sparse_initializer or any(one.HasField("sparse_tensor") or one.sparse_tensors for one in attributes):
        raise MetadataError(f"{path}: expected dense weights, got sparse ones. Export the model with dense weights.")


def _embed_weights(path: Path, model: Any) -> None:
    """Replace weights in other files by their bytes."""
    from onnx import TensorProto

    total = model.ByteSize()
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {one.key: one.value for one in tensor.external_data}
        name = entries.get("location", "")
        if not name or name != Path(name).name or "\\" in name or name.startswith("."):
            raise MetadataError(
                f"{path}: expected weights in the same folder, got {name!r}. Save the model as one file: "
                f"onnx.save(onnx.load(FILE), FILE)"
            )
        count = _bytes_of(path, tensor)
        total += count
        if total > _MAX_BYTES:
            raise MetadataError(f"{path}: expected less than 2 GiB with its weights, got more. Use a smaller model.")
        tensor.raw_data = _read_part(path.parent / name, path, int(entries.get("offset", 0)), count)
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT


def _bytes_of(path: Path, tensor: Any) -> int:
    """Return the number of bytes of a tensor's values."""
    from onnx import helper

    if any(size < 0 for size in tensor.dims):
        raise MetadataError(f"{path}: expected sizes of at least 0, got {list(tensor.dims)} for {tensor.name!r}")
    value_bytes: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    values: int = math.prod(tensor.dims)
    return values * value_bytes


def _read_part(file: Path, path: Path, offset: int, count: int) -> bytes:
    """Return `count` bytes of a file of weights from `offset`."""
    try:
        if file.is_symlink() or offset < 0 or check_regular(file).st_size < offset + count:
            raise MetadataError(f"{path}: expected {count:,} bytes of weights in {file}, got fewer, or a link")
        with open_regular(file) as opened:
            opened.seek(offset)
            return opened.read(count)
    except OSError as error:
        raise MetadataError(
            f"{path}: its weights in {file} can't be read: {error.strerror}. Keep both files in one folder."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
