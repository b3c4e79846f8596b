"""Outcomes that few places are for."""

import numpy as np
import pytest

from pbkv_cluster.predictor_service.experts.column_places import MOST, ColumnPlaces


def test_columns_share_the_last_place_as_they_come() -> None:
    places = ColumnPlaces()
    places.grow(MOST + 2)
    for column, times in ((MOST - 1, 6), (MOST, 2), (MOST + 1, 0)):
        for _ in range(times):
            assert places.came(column) == MOST - 1
    chances = np.zeros(MOST, dtype=np.float32)
    chances[MOST - 1] = 1.0
    assert places.spread(chances)[MOST - 1 :] == pytest.approx(np.array([7, 3, 1]) / 11)
    assert places.exchange() is None
    for _ in range(5):
        places.came(MOST - 1)
    assert places.exchange() == 1
    assert places.came(MOST - 1) == 1
    assert places.came(1) == MOST - 1
