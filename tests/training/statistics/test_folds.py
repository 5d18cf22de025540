"""Folds by patient."""

from __future__ import annotations

import numpy as np

from plurum.training.statistics.folds import patient_folds


def test_each_image_is_held_out_once_and_patients_are_not_divided() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(200) // 5
    labels = rng.integers(0, 3, 200)
    folds = list(patient_folds(labels, groups, seed=1))
    assert len(folds) == 5
    assert sorted(np.concatenate([unseen for _, unseen in folds]).tolist()) == list(range(200))
    for rows, unseen in folds:
        assert len(rows) + len(unseen) == 200
        assert not set(groups[rows]) & set(groups[unseen])
        assert len(set(groups[unseen])) == 8


def test_classes_are_spread_evenly_and_by_the_seed() -> None:
    labels = np.array([0] * 45 + [1] * 5)
    folds = [[unseen.tolist() for _, unseen in patient_folds(labels, np.arange(50), seed)] for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]
    assert all(labels[unseen].tolist().count(1) == 1 for unseen in folds[2])


def test_there_are_no_more_folds_than_patients_and_none_of_one() -> None:
    labels = np.array([0, 1, 1, 0])
    assert len(list(patient_folds(labels, np.array([0, 0, 1, 2]), seed=0))) == 3
    assert list(patient_folds(labels, np.zeros(4, dtype=np.int64), seed=0)) == []
