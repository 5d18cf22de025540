"""Write members to disk: weights, `member.json` and history, atomically."""

from __future__ import annotations

from plurum.errors import OutputError, needs_extra
from plurum.files import atomic_folder, sha256_of
from plurum.run import DataMetadata, Run
from plurum.spec import Member, write_metadata
from plurum.training.learning.backbones import Backbone
from plurum.training.learning.history import write_history
from plurum.training.learning.trainer import TrainedModel, TrainingSnapshot

__all__ = ["write_member"]


def write_member(
    run: Run, metadata: DataMetadata, name: str, backbone: Backbone, trained: TrainedModel, snapshot: TrainingSnapshot
) -> Member:
    """Write the member's folder atomically and return the contents of its `member.json`.

    Args:
        run: Run that the member belongs to.
        metadata: Metadata of the training data.
        name: Name of the member and of its folder.
        backbone: Architecture of the member.
        trained: Result of the training.
        snapshot: Snapshot of the training that becomes this member.

    Raises:
        OutputError: the folder can't be written.
    """
    with needs_extra("training"):
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    with atomic_folder(run.member_folder(name)) as folder:
        try:
            save_file(snapshot.weights, folder / "checkpoint.safetensors")
        except SafetensorError as error:
            # The safetensors writer turns the system's OSError into this error.
            raise OutputError(f"{run.member_folder(name)} can't be written: {error}") from error
        write_history(folder / "history.csv", trained.history)
        member = Member(
            name=name,
            arch=backbone.arch,
            model_args=backbone.model_args,
            sha256=sha256_of(folder / "checkpoint.safetensors"),
            classes=metadata.classes,
            image=metadata.image,
            parameters=trained.parameters,
            seed=trained.seed,
            precision=trained.precision,
            epochs=len(trained.history),
            best_epoch=snapshot.epoch.epoch,
            validation=snapshot.validation,
        )
        write_metadata(folder / "member.json", member)
    return member
