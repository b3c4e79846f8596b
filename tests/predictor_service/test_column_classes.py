"""Many columns for few classes."""

import numpy as np
import pytest

from pbkv_cluster.predictor_service.experts.linear.column_classes import MAX_CLASSES, ColumnClasses


def test_columns_share_the_last_class_by_their_counts() -> None:
    classes = ColumnClasses()
    classes.grow(MAX_CLASSES + 2)
    for column, times in ((MAX_CLASSES - 1, 6), (MAX_CLASSES, 2), (MAX_CLASSES + 1, 0)):
        for _ in range(times):
            assert classes.count(column) == MAX_CLASSES - 1
    probabilities = np.zeros(MAX_CLASSES, dtype=np.float32)
    probabilities[MAX_CLASSES - 1] = 1.0
    assert classes.spread(probabilities)[MAX_CLASSES - 1 :] == pytest.approx(np.array([7, 3, 1]) / 11)
    assert classes.promote() is None
    for _ in range(5):
        classes.count(MAX_CLASSES - 1)
    assert classes.promote() == 1
    assert classes.count(MAX_CLASSES - 1) == 1
    assert classes.count(1) == MAX_CLASSES - 1
