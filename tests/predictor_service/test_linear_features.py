"""A situation as a record of hashes."""

from dataclasses import replace

import numpy as np

from pbkv_cluster.predictor_service.experts.linear.features import VALUES, record_of
from pbkv_cluster.predictor_service.workflow.situation import Situation


def test_features_are_packed_small() -> None:
    seen = Situation(
        agents=("plan", "code", "test", "review") * 3,
        step=12,
        count=3,
        run=1,
        pieces=tuple(range(30)),
        task=tuple(range(40)),
        words=tuple(range(200, 245)),
        finished=True,
        call_sites=("", "draft"),
        previous_words=tuple(range(300, 320)),
        prompt_tokens=700,
        previous_prompt_tokens=500,
        output_tokens=30,
        agent_prompt_tokens=400,
        agent_output_tokens=90,
    )
    found, groups = np.frombuffer(record_of(seen), dtype=np.uint16), VALUES.shape[1]
    assert found.nbytes < 600
    assert len(found) == groups + found[:groups].sum()
    assert found[:groups].tolist() == [1, 8, 3, 2, 2, 3, 0, 3, 16, 16, 20, 45, 44, 6, 45]
    before = np.frombuffer(record_of(replace(seen, finished=False)), dtype=np.uint16)
    assert before[:groups].tolist() == [1, 8, 3, 2, 2, 2, 5, 3, 16, 16, 20, 45, 44, 6, 0]
    repeated = np.frombuffer(record_of(Situation(("plan",), words=(5, 5, 6, 5))), dtype=np.uint16)
    assert repeated[11:14].tolist() == [2, 3, 6]  # each word once, every pair
    wide = np.frombuffer(record_of(Situation(("plan",), words=tuple(range(2000)), pieces=tuple(range(3000)))), dtype=np.uint16)
    assert len(wide) == groups + wide[:groups].sum()
    assert wide[:groups].max() < len(VALUES)
