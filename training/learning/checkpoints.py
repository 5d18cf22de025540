"""Members on disk: weights, contract and history, whole or not at all."""

from __future__ import annotations

from plurum.errors import OutputError, needs_extra
from plurum.files import atomic_folder, sha256_of
from plurum.run import DataContract, Run
from plurum.spec import Member, write_contract
from plurum.training.learning.history import write_history
from plurum.training.learning.trainer import Snapshot, Trained

__all__ = ["write_member"]


def write_member(
    run: Run, contract: DataContract, name: str, arch: str, trained: Trained, snapshot: Snapshot
) -> Member:
    """Write the member's folder in one step and return its contract.

    Args:
        run: Where it goes.
        contract: What it was trained on.
        name: Of the member and of its folder.
        arch: What `timm.create_model` takes.
        trained: What came out of its training.
        snapshot: The one of its snapshots that this member is.

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
            # Its writer turns what the system said into this.
            raise OutputError(f"{run.member_folder(name)} can't be written: {error}") from error
        write_history(folder / "history.csv", trained.history)
        member = Member(
            name=name,
            arch=arch,
            sha256=sha256_of(folder / "checkpoint.safetensors"),
            classes=contract.classes,
            image=contract.image,
            parameters=trained.parameters,
            seed=trained.seed,
            precision=trained.precision,
            epochs=len(trained.history),
            best_epoch=snapshot.epoch.epoch,
            validation=snapshot.validation,
        )
        write_contract(folder / "member.json", member)
    return member
