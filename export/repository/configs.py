"""Triton model configurations, built as protobuf and written as text.

What is left out here (how many instances, how many threads) depends on the machine that serves, and
`plurum serve` fills it in there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from plurum.export.settings import EXECUTIONS, Backend, Execution
from plurum.spec import IMAGE, INPUT_PIXELS, LOGITS, OUTPUTS, Ensemble, Member

__all__ = [
    "FUSED",
    "LABELS",
    "ensemble_config",
    "fused_config",
    "fused_ensemble_config",
    "labels_config",
    "member_config",
    "preprocess_config",
    "text_of",
    "voter_config",
]

# The steps of `ensemble_fused`.
FUSED, LABELS = "fused", "labels"


def text_of(config: Any) -> str:
    """Return a ModelConfig as the text of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def member_config(member: Member, max_batch_size: int, execution: Execution = EXECUTIONS["cpu"][0]) -> Any:
    """Return the config of one member's graph, PIXELS → LOGITS."""
    config = _graph_config(member.name, max_batch_size, execution)
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
    config = _ensemble_config(name, ensemble, max_batch_size, encoded=encoded)
    steps = config.ensemble_scheduling.step
    logits = {f"{LOGITS}_{index}": f"{member.name}_{LOGITS}" for index, member in enumerate(ensemble.members)}
    for member, tensor in zip(ensemble.members, logits.values(), strict=True):
        steps.append(_step(member.name, {INPUT_PIXELS: INPUT_PIXELS}, {LOGITS: tensor}))
    steps.append(_step("voter", logits, {output: output for output in OUTPUTS}))
    return config


def fused_config(ensemble: Ensemble, max_batch_size: int, backend: Backend) -> Any:
    """Return the config of the graph of members and vote: PIXELS → the answers, the winner by its index.

    One instance with all cores: who asks it wants one answer soon. Whether it serves many better than the chain, too,
    is for `plurum tune` to find out.
    """
    # Whatever its members are in: the vote is FP32.
    config = _graph_config(FUSED, max_batch_size, Execution("fp32", backend))
    if backend != "tensorrt":
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    config.input.append(_pixels(pb.ModelInput, ensemble))
    config.output.extend(one for one in _answers(ensemble) if one.name != "LABEL")
    config.output.append(_tensor(pb.ModelOutput, "INDEX", "TYPE_INT32", (1,)))
    return config


def labels_config(ensemble: Ensemble, max_batch_size: int) -> Any:
    """Return the config of the Python model that names the winner: INDEX and the answers without LABEL → the answers.

    All of them come from this last step: an ensemble of Triton's refuses a request for some of its outputs where the
    others come from an earlier step.
    """
    config = _config(LABELS, max_batch_size, backend="python")
    config.input.append(_tensor(pb.ModelInput, "INDEX", "TYPE_INT32", (1,)))
    answers = _answers(ensemble)
    config.input.extend(
        pb.ModelInput(name=one.name, data_type=one.data_type, dims=one.dims) for one in answers if one.name != "LABEL"
    )
    config.output.extend(answers)
    return config


def fused_ensemble_config(
    ensemble: Ensemble, max_batch_size: int, name: str = "ensemble_fused", *, encoded: bool = False
) -> Any:
    """Return the config that chains the fused graph and its labels: from IMAGE where `encoded`, else from PIXELS.

    It answers what `ensemble_config` answers, and carries the same `contract`.
    """
    config = _ensemble_config(name, ensemble, max_batch_size, encoded=encoded)
    tensors = {name: f"{FUSED}_{name}" for name in ("INDEX", *OUTPUTS) if name != "LABEL"}
    steps = config.ensemble_scheduling.step
    steps.append(_step(FUSED, {INPUT_PIXELS: INPUT_PIXELS}, tensors))
    steps.append(_step(LABELS, tensors, {output: output for output in OUTPUTS}))
    return config


def _ensemble_config(name: str, ensemble: Ensemble, max_batch_size: int, *, encoded: bool) -> Any:
    """Return the config of an ensemble that has only the step that decodes, where `encoded`."""
    config = _config(name, max_batch_size, platform="ensemble")
    config.parameters["contract"].string_value = ensemble.model_dump_json()
    if encoded:
        config.input.append(_tensor(pb.ModelInput, IMAGE, "TYPE_STRING", (1,)))
        config.ensemble_scheduling.step.append(_step("preprocess", {IMAGE: IMAGE}, {INPUT_PIXELS: INPUT_PIXELS}))
    else:
        config.input.append(_pixels(pb.ModelInput, ensemble))
    config.output.extend(_answers(ensemble))
    return config


def _graph_config(name: str, max_batch_size: int, execution: Execution) -> Any:
    if execution.backend == "tensorrt":
        config = _config(name, max_batch_size, platform="tensorrt_plan", default_model_filename="model.plan")
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU)
        config.optimization.cuda.graphs = True
        return config
    config = _config(name, max_batch_size, backend=execution.backend, default_model_filename="model.onnx")
    if execution.precision == "bf16":
        config.parameters["HINT_BF16"].string_value = "YES"
    return config


def _config(name: str, max_batch_size: int, **fields: str) -> Any:
    config = pb.ModelConfig(name=name, max_batch_size=max_batch_size, **fields)
    if fields.get("platform") != "ensemble":
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
