"""Triton model configurations, built as protobuf and written as text.

The numbers of instances and threads are left out: they depend on the machine that serves, and `plurum serve` adds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from plurum.export.settings import EXECUTIONS, Backend, Execution, Form
from plurum.predictions.outputs import BEFORE, LEAVE, OUTPUTS, Output, graph_outputs
from plurum.spec import IMAGE, INPUT_PIXELS, LOGITS, NOVELTY, Ensemble, ImageSpec, Member

__all__ = [
    "FUSED",
    "LABELS",
    "chain_configs",
    "ensemble_config",
    "fused_config",
    "fused_configs",
    "fused_ensemble_config",
    "has_stage_models",
    "member_config",
    "outputs_of",
    "stage_files",
    "stage_models",
    "stage_paths",
    "text_of",
]

# The steps of `ensemble_fused`.
FUSED, LABELS = "fused", "labels"
# While one instance of a cascade waits for a stage, the others forward further requests.
_CASCADE_INSTANCES = 4


def stage_files(ensemble: Ensemble) -> list[str]:
    """Return the file names of the graphs of a cascade's stages, in their order; none without a cascade."""
    return [] if ensemble.cascade is None else [f"stage_{one}.onnx" for one in range(len(ensemble.cascade.stages) + 1)]


def stage_models(ensemble: Ensemble) -> list[str]:
    """Return the names of the stages' models where each stage is one, in their order; none without a cascade."""
    return [name.removesuffix(".onnx") for name in stage_files(ensemble)]


def has_stage_models(ensemble: Ensemble, backend: Backend) -> bool:
    """Return True if each stage of the ensemble's cascade is a model: a model of TensorRT holds one plan."""
    return ensemble.cascade is not None and backend == "tensorrt"


def stage_paths(ensemble: Ensemble, repository: Path, backend: Backend) -> list[Path]:
    """Return the graphs of a cascade's stages in a repository, in their order; none without a cascade."""
    if has_stage_models(ensemble, backend):
        return [repository / name / "1" / "model.onnx" for name in stage_models(ensemble)]
    return [repository / FUSED / "1" / name for name in stage_files(ensemble)]


def text_of(config: Any) -> str:
    """Return a ModelConfig as the text of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def member_config(
    member: Member,
    max_batch_size: int,
    execution: Execution = EXECUTIONS["cpu"][0],
    *,
    has_novelty: bool = False,
    decoded: ImageSpec | None = None,
) -> Any:
    """Return the config of one member's graph, PIXELS → LOGITS, and NOVELTY if it has a detector.

    Args:
        member: Metadata of the member.
        max_batch_size: Largest batch.
        execution: Precision and backend of the graph.
        has_novelty: True if the member has a detector.
        decoded: Image spec of the ensemble, by which images are decoded; None if that is the member's.
    """
    config = _graph_config(member.name, max_batch_size, execution)
    config.input.append(_pixels(pb.ModelInput, decoded or member.image))
    config.output.append(_tensor(pb.ModelOutput, LOGITS, "TYPE_FP32", (len(member.classes),)))
    if has_novelty:
        config.output.append(_tensor(pb.ModelOutput, NOVELTY, "TYPE_FP32", (1,)))
    return config


def chain_configs(ensemble: Ensemble, max_batch_size: int, form: Form) -> list[Any]:
    """Return the configs of all models but the members: preprocess, voter, and the ensembles for images and pixels.

    In the fused form, these ensembles run the fused graph, and no ensemble uses the voter.
    """
    return [
        _preprocess_config(ensemble, max_batch_size),
        _voter_config(ensemble, max_batch_size),
        *(
            fused_ensemble_config(ensemble, max_batch_size, name, encoded=encoded)
            if form == "fused"
            else ensemble_config(name, ensemble, max_batch_size, encoded=encoded)
            for name, encoded in (("ensemble", True), ("ensemble_pixels", False))
        ),
    ]


def fused_configs(ensemble: Ensemble, max_batch_size: int, backend: Backend) -> list[Any]:
    """Return the configs of the fused graph, of its labels and of their ensemble, and of stages that are models."""
    return [
        *(_stage_configs(ensemble, max_batch_size, backend) if has_stage_models(ensemble, backend) else ()),
        fused_config(ensemble, max_batch_size, backend),
        _labels_config(ensemble, max_batch_size),
        fused_ensemble_config(ensemble, max_batch_size),
    ]


def _preprocess_config(ensemble: Ensemble, max_batch_size: int) -> Any:
    """Return the config of the Python model that decodes images: IMAGE → PIXELS."""
    config = _config("preprocess", max_batch_size, backend="python")
    config.input.append(_tensor(pb.ModelInput, IMAGE, "TYPE_STRING", (1,)))
    config.output.append(_pixels(pb.ModelOutput, ensemble.image))
    return config


def _voter_config(ensemble: Ensemble, max_batch_size: int) -> Any:
    """Return the config of the Python model that votes: LOGITS_0 … LOGITS_{M-1} → the outputs of the ensemble.

    Outlier tests also need NOVELTY_i of each member with a detector. Audits also need PIXELS, from which an image is
    drawn.
    """
    config = _config("voter", max_batch_size, backend="python")
    if ensemble.audit_rate is not None:
        config.input.append(_pixels(pb.ModelInput, ensemble.image))
    for index in range(len(ensemble.members)):
        config.input.append(_tensor(pb.ModelInput, f"{LOGITS}_{index}", "TYPE_FP32", (len(ensemble.classes),)))
    for index in _detecting(ensemble):
        config.input.append(_tensor(pb.ModelInput, f"{NOVELTY}_{index}", "TYPE_FP32", (1,)))
    config.output.extend(_ensemble_outputs(ensemble))
    return config


def ensemble_config(name: str, ensemble: Ensemble, max_batch_size: int, *, encoded: bool) -> Any:
    """Return the config of the Triton ensemble of all models; its input is IMAGE if `encoded`, else PIXELS.

    The parameter `contract` holds the text of `ensemble.json`, from which clients read the class names.
    """
    config = _ensemble_config(name, ensemble, max_batch_size, encoded=encoded)
    steps = config.ensemble_scheduling.step
    voted = _drawn_from(ensemble)
    for index, member in enumerate(ensemble.members):
        made = [LOGITS, NOVELTY] if index in _detecting(ensemble) else [LOGITS]
        voted |= {f"{tensor}_{index}": f"{member.name}_{tensor}" for tensor in made}
        steps.append(_step(member.name, {INPUT_PIXELS: INPUT_PIXELS}, {name: f"{member.name}_{name}" for name in made}))
    steps.append(_step("voter", voted, {name: name for name in outputs_of(ensemble)}))
    return config


def fused_config(ensemble: Ensemble, max_batch_size: int, backend: Backend) -> Any:
    """Return the config of the fused graph: PIXELS → the outputs of the ensemble, with INDEX instead of LABEL.

    The parameter `stages` names the graphs of a cascade, which Plurum's backends run instead of `model.onnx`. Others
    ignore it, and run all members for each image. Where stages are models, it names these, and the fused model is a
    Python model that runs them.
    """
    are_models = has_stage_models(ensemble, backend)
    if are_models:
        config = _config(FUSED, max_batch_size, backend="python")
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=_CASCADE_INSTANCES)
    else:
        # The vote is FP32 in every precision of the members.
        config = _graph_config(FUSED, max_batch_size, Execution("fp32", backend))
    config.input.append(_pixels(pb.ModelInput, ensemble.image))
    voted = _passed_on(ensemble)
    config.output.extend(one for one in _ensemble_outputs(ensemble) if one.name in voted)
    config.output.append(_tensor(pb.ModelOutput, "INDEX", "TYPE_INT32", (1,)))
    if ensemble.cascade is not None:
        stages = stage_models(ensemble) if are_models else stage_files(ensemble)
        config.parameters["stages"].string_value = " ".join(stages)
    return config


def _stage_configs(ensemble: Ensemble, max_batch_size: int, backend: Backend) -> list[Any]:
    """Return the configs of a cascade's stages as models; see `plurum.export.graphs.stages` for their tensors."""
    cascade = ensemble.cascade
    if cascade is None:
        return []
    fused, configs, before = fused_config(ensemble, max_batch_size, backend), [], 0
    sizes = [*(stage.members for stage in cascade.stages), len(ensemble.members)]
    for name, after in zip(stage_models(ensemble), sizes, strict=True):
        config = _graph_config(name, max_batch_size, Execution("fp32", backend))
        config.input.extend([*fused.input, *_logits_so_far(pb.ModelInput, ensemble, before, BEFORE)])
        config.output.extend(fused.output)
        if after < len(ensemble.members):
            config.output.append(_tensor(pb.ModelOutput, LEAVE, "TYPE_BOOL", (1,)))
            config.output.extend(_logits_so_far(pb.ModelOutput, ensemble, after, ""))
        configs.append(config)
        before = after
    return configs


def _logits_so_far(kind: Any, ensemble: Ensemble, members: int, suffix: str) -> list[Any]:
    """Return the tensors of the first members of a cascade: LOGITS and, if they have detectors, NOVELTY."""
    order = ensemble.cascade.order[:members] if ensemble.cascade else ()
    detectors = sum(ensemble.detecting[one] for one in order)
    shapes = {LOGITS: (members, len(ensemble.classes)), NOVELTY: (detectors,)}
    return [_tensor(kind, f"{name}{suffix}", "TYPE_FP32", shape) for name, shape in shapes.items() if shape[0]]


def _labels_config(ensemble: Ensemble, max_batch_size: int) -> Any:
    """Return the config of the Python model that turns INDEX into LABEL and passes all other outputs on.

    All outputs come from this last step, because a Triton ensemble refuses a request for some of its outputs if the
    others come from an earlier step.
    """
    config = _config(LABELS, max_batch_size, backend="python")
    config.input.append(_tensor(pb.ModelInput, "INDEX", "TYPE_INT32", (1,)))
    outputs, voted = _ensemble_outputs(ensemble), _passed_on(ensemble)
    config.input.extend(
        pb.ModelInput(name=one.name, data_type=one.data_type, dims=one.dims) for one in outputs if one.name in voted
    )
    if ensemble.audit_rate is not None:
        config.input.append(_pixels(pb.ModelInput, ensemble.image))
    config.output.extend(outputs)
    return config


def fused_ensemble_config(
    ensemble: Ensemble, max_batch_size: int, name: str = "ensemble_fused", *, encoded: bool = False
) -> Any:
    """Return the config of the Triton ensemble of the fused graph; its input is IMAGE if `encoded`, else PIXELS.

    It has the same outputs and the same parameter `contract` as `ensemble_config`.
    """
    config = _ensemble_config(name, ensemble, max_batch_size, encoded=encoded)
    tensors = {name: f"{FUSED}_{name}" for name in ("INDEX", *_passed_on(ensemble))}
    steps = config.ensemble_scheduling.step
    steps.append(_step(FUSED, {INPUT_PIXELS: INPUT_PIXELS}, tensors))
    steps.append(_step(LABELS, tensors | _drawn_from(ensemble), {name: name for name in outputs_of(ensemble)}))
    return config


def _ensemble_config(name: str, ensemble: Ensemble, max_batch_size: int, *, encoded: bool) -> Any:
    """Return the config of a Triton ensemble without steps, or with the decoding step if `encoded`."""
    config = _config(name, max_batch_size, platform="ensemble")
    config.parameters["contract"].string_value = ensemble.model_dump_json()
    if encoded:
        config.input.append(_tensor(pb.ModelInput, IMAGE, "TYPE_STRING", (1,)))
        config.ensemble_scheduling.step.append(_step("preprocess", {IMAGE: IMAGE}, {INPUT_PIXELS: INPUT_PIXELS}))
    else:
        config.input.append(_pixels(pb.ModelInput, ensemble.image))
    config.output.extend(_ensemble_outputs(ensemble))
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
        # No queue delay: a batch forms while an instance is busy, and an idle instance starts at once.
        config.dynamic_batching.SetInParent()
    return config


def _tensor(kind: Any, name: str, data_type: str, dims: Iterable[int]) -> Any:
    return kind(name=name, data_type=pb.DataType.Value(data_type), dims=dims)


def _pixels(kind: Any, image: ImageSpec) -> Any:
    return _tensor(kind, INPUT_PIXELS, "TYPE_UINT8", (image.height, image.width, 3))


def _ensemble_outputs(ensemble: Ensemble) -> list[Any]:
    sizes = len(ensemble.classes), len(ensemble.members)
    # Triton's name for BYTES in a config.
    types = {"BYTES": "TYPE_STRING"}
    return [
        _tensor(pb.ModelOutput, name, types.get(one.datatype, f"TYPE_{one.datatype}"), one.shape(*sizes))
        for name, one in outputs_of(ensemble).items()
    ]


def outputs_of(ensemble: Ensemble) -> dict[str, Output]:
    """Return the outputs of a served ensemble, by name."""
    return {name: one for name, one in OUTPUTS.items() if one.needs is None or getattr(ensemble, one.needs) is not None}


def _passed_on(ensemble: Ensemble) -> list[str]:
    """Return the names of the fused graph's outputs that its labels model passes on."""
    has = {"has_outliers": ensemble.outliers is not None, "has_cascade": ensemble.cascade is not None}
    return [name for name in graph_outputs(**has) if name != "INDEX"]


def _detecting(ensemble: Ensemble) -> list[int]:
    """Return the indices of the members that have a detector."""
    return [index for index, has in enumerate(ensemble.detecting) if has]


def _drawn_from(ensemble: Ensemble) -> dict[str, str]:
    """Return the input map of the tensor that audits are drawn from; empty without audits."""
    return {} if ensemble.audit_rate is None else {INPUT_PIXELS: INPUT_PIXELS}


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> Any:
    return pb.ModelEnsembling.Step(model_name=model, model_version=-1, input_map=inputs, output_map=outputs)
