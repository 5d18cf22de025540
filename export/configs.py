"""Triton model configurations, built as protobuf and written as text.

What is left out here (how many instances, how many threads) depends on the machine that serves, and
`plurum serve` fills it in there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from plurum.spec import IMAGE, INPUT_PIXELS, LOGITS, OUTPUTS, Ensemble, Member

__all__ = ["ensemble_config", "member_config", "preprocess_config", "text_of", "voter_config"]


def text_of(config: Any) -> str:
    """Return a ModelConfig as the text of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def member_config(member: Member, max_batch_size: int) -> Any:
    """Return the config of one member's ONNX graph: PIXELS → LOGITS."""
    config = _config(member.name, max_batch_size, backend="onnxruntime", default_model_filename="model.onnx")
    config.input.append(_pixels(pb.ModelInput, member))
    config.output.append(_tensor(pb.ModelOutput, LOGITS, "TYPE_FP32", (len(member.classes),)))
    return config


def preprocess_config(ensemble: Ensemble, max_batch_size: int) -> Any:
    """Return the config of the Python model that decodes: IMAGE → PIXELS."""
    config = _config("preprocess", max_batch_size, backend="python")
    config.input.append(_tensor(pb.ModelInput, IMAGE, "TYPE_STRING", (1,)))
    config.output.append(_pixels(pb.ModelOutput, ensemble))
    return config


def voter_config(ensemble: Ensemble, max_batch_size: int) -> Any:
    """Return the config of the Python model that votes: LOGITS_0 … LOGITS_{M-1} → the answers."""
    config = _config("voter", max_batch_size, backend="python")
    for index in range(len(ensemble.members)):
        config.input.append(_tensor(pb.ModelInput, f"{LOGITS}_{index}", "TYPE_FP32", (len(ensemble.classes),)))
    config.output.extend(_answers(ensemble))
    return config


def ensemble_config(name: str, ensemble: Ensemble, max_batch_size: int, *, encoded: bool) -> Any:
    """Return the config that chains the models: from IMAGE where `encoded`, else from PIXELS, to the answers.

    Its parameter `contract` holds the text of `ensemble.json`, so that a client can learn the classes' names.
    """
    config = _config(name, max_batch_size, platform="ensemble")
    config.parameters["contract"].string_value = ensemble.model_dump_json()
    steps = config.ensemble_scheduling.step
    if encoded:
        config.input.append(_tensor(pb.ModelInput, IMAGE, "TYPE_STRING", (1,)))
        steps.append(_step("preprocess", {IMAGE: IMAGE}, {INPUT_PIXELS: INPUT_PIXELS}))
    else:
        config.input.append(_pixels(pb.ModelInput, ensemble))
    logits = {f"{LOGITS}_{index}": f"{member.name}_{LOGITS}" for index, member in enumerate(ensemble.members)}
    for member, tensor in zip(ensemble.members, logits.values(), strict=True):
        steps.append(_step(member.name, {INPUT_PIXELS: INPUT_PIXELS}, {LOGITS: tensor}))
    config.output.extend(_answers(ensemble))
    steps.append(_step("voter", logits, {output: output for output in OUTPUTS}))
    return config


def _config(name: str, max_batch_size: int, **fields: str) -> Any:
    config = pb.ModelConfig(name=name, max_batch_size=max_batch_size, **fields)
    if "backend" in fields:
        # No delay: while an instance is busy the next batch gathers by itself, and an idle one need not wait.
        config.dynamic_batching.SetInParent()
    return config


def _tensor(kind: Any, name: str, data_type: str, dims: Iterable[int]) -> Any:
    return kind(name=name, data_type=pb.DataType.Value(data_type), dims=dims)


def _pixels(kind: Any, contract: Ensemble | Member) -> Any:
    return _tensor(kind, INPUT_PIXELS, "TYPE_UINT8", (contract.image.height, contract.image.width, 3))


def _answers(ensemble: Ensemble) -> list[Any]:
    sizes = {"C": len(ensemble.classes), "M": len(ensemble.members)}
    return [
        _tensor(pb.ModelOutput, name, data_type, [sizes[dim] if isinstance(dim, str) else dim for dim in dims])
        for name, (data_type, dims) in OUTPUTS.items()
    ]


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> Any:
    return pb.ModelEnsembling.Step(model_name=model, model_version=-1, input_map=inputs, output_map=outputs)
