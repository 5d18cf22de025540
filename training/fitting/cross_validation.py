"""Fit the vote of models that were trained once per fold, on predictions for images that the predicting member lacked.

All members of a model vote when serving. Out of fold, one of them stands for the model, because the others have learnt
the image. So members of one model share its weight, and a model is kept or left out as a whole. Temperature, prediction
sets and review are fitted to what serves: the vote of all members, on validation images that none has learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from plurum.errors import MetadataError, SettingsError
from plurum.predictions.arrays import Floats
from plurum.run import Run, number_patients
from plurum.settings.fitting import FitSettings
from plurum.spec import Member
from plurum.training.fitting.selection import Selection
from plurum.training.fitting.votes import FittedVote, ValidationPredictions, fit_vote
from plurum.training.inference.predictions import predict_out_of_fold
from plurum.training.learning.plan import planned_trainings
from plurum.training.statistics.calibration import fit_temperature
from plurum.voting import MODES, soft_vote

__all__ = ["FoldModel", "fit_fold_vote", "fold_models", "spread_vote"]

# Index of the member that did not learn each fold, by fold.
FoldModel = Mapping[int, int]


def fold_models(run: Run, members: Sequence[Member], settings: FitSettings) -> tuple[FoldModel, ...]:
    """Return the models of a run with folds; none for other runs.

    Args:
        run: Run of the members.
        members: All members of the run.
        settings: Settings of the fit.

    Raises:
        MetadataError: a model lacks the member of a fold, or a member belongs to no fold.
        SettingsError: the voting mode weighs single members.
    """
    trainings = planned_trainings(run)
    # A student's run has the images and folds of its teacher's.
    if run.table().folds is None or (trainings and all(training.fold is None for training in trainings)):
        return ()
    if settings.mode == "stack":
        raise SettingsError("--mode: expected soft or hard in a run with folds, got stack. Choose one of them")
    where = {member.name: index for index, member in enumerate(members)}
    models: dict[str, dict[int, int]] = {}
    missing = list[str]()
    for training in trainings:
        for name in training.members:
            if name not in where:
                missing.append(name)
            elif training.fold is not None:
                models.setdefault(training.model, {})[training.fold] = where.pop(name)
    if missing:
        raise MetadataError(
            f"{run.path}: expected a member of each fold, got none of {', '.join(missing)}. Run the same plurum train "
            f"command again to finish them"
        )
    if where or not models:
        raise MetadataError(
            f"{run.path}: expected members that were trained with --folds, got {', '.join(where) or 'none'}. Remove "
            f"other members, or add them to a run without folds"
        )
    return tuple(models.values())


def fit_fold_vote(
    run: Run,
    members: Sequence[Member],
    models: Sequence[FoldModel],
    known: ValidationPredictions,
    settings: FitSettings,
) -> FittedVote:
    """Select and weigh models on out-of-fold predictions, and fit the temperature of all members' vote.

    Args:
        run: Run of the members.
        members: All members of the run.
        models: Models, as `fold_models` returns them.
        known: Predictions of all members for validation images.
        settings: Settings of the fit.

    Raises:
        MetadataError: a member returns NaN.
    """
    predictions = predict_out_of_fold(run, [{fold: members[one] for fold, one in model.items()} for model in models])
    table = run.table()
    rows = table.rows("train")
    groups = number_patients([table.patients[row] for row in rows])
    return spread_vote(
        fit_vote(ValidationPredictions(predictions, table.labels[rows], groups, known.classes), settings), models, known
    )


def spread_vote(by_model: FittedVote, models: Sequence[FoldModel], known: ValidationPredictions) -> FittedVote:
    """Return the vote of members for a vote of models, with the temperature that suits the members' vote.

    Args:
        by_model: Vote of models, fitted out of fold.
        models: Members of each model.
        known: Predictions of all members for validation images.
    """
    weights = dict(zip(by_model.kept.tolist(), by_model.rule.weights, strict=True))
    selected = _spread(weights, models)
    kept = np.array(sorted(selected), dtype=np.int64)
    rule = replace(by_model.rule, weights=tuple(selected[index] for index in kept.tolist()))
    if MODES[rule.mode].has_probabilities:
        vote = soft_vote(known.predictions[:, kept], np.array(rule.weights))
        rule = replace(rule, temperature=fit_temperature(vote, known.labels))
    number = known.predictions.shape[1]
    chosen = _spread(dict(enumerate(by_model.selection.weights.tolist())), models)
    of_member = {member: model for model, members in enumerate(models) for member in members.values()}
    selection = Selection(
        _array(chosen, number), tuple(by_model.selection.contributions[of_member[index]] for index in range(number))
    )
    tried = by_model.weights_tried
    return replace(
        by_model,
        rule=rule,
        kept=kept,
        selection=selection,
        weights_tried=None if tried is None else dict(sorted(_spread(tried, models).items())),
    )


def _spread(weights: Mapping[int, float], models: Sequence[FoldModel]) -> dict[int, float]:
    """Return the weight of each member, for that of some models by index."""
    return {
        member: weight / len(models[model]) for model, weight in weights.items() for member in models[model].values()
    }


def _array(weights: Mapping[int, float], number: int) -> Floats:
    return np.array([weights[index] for index in range(number)])
