"""Learns the prior of policy `pbkv` from the recorded workloads; `python -m benchmarks.prior.learn [TRACES]` writes the
one that ships.

Only the tasks are used that the benchmark of policies trains on: no prior has seen a task that policies are measured on.
"""

import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from benchmarks.policies.benchmark import SALT, SHARES
from benchmarks.policies.job import TRACES, WORKLOADS
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.predictor_service.access.prior import PACKAGED, save_prior
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.simulator.prediction.prior_training import learn_prior
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.traces.split import split
from pbkv_cluster.simulator.workload.access_logs import access_logs

_MOST_WORKFLOWS = 60  # of each workload


def family(workload: str) -> str:
    """Workloads of one framework: their names begin alike."""
    return workload.partition("_")[0]


def learn(traces: Path, without: Collection[str] = ()) -> AccessModel:
    """A prior learnt from the training tasks of all workloads whose family is not in `without`."""
    names = [name for name in WORKLOADS if family(name) not in without]
    return learn_prior({name: list(_logs(traces, name)) for name in names}, {name: family(name) for name in names})


def _logs(traces: Path, workload: str) -> Iterator[AccessLog]:
    trace = split(load_trace(traces / f"{workload}.jsonl.gz"), SHARES, SALT)["train"]
    return access_logs(trace.workflows[:_MOST_WORKFLOWS])


if __name__ == "__main__":
    save_prior(PACKAGED, learn(Path(sys.argv[1]) if sys.argv[1:] else TRACES))
    print(f"{PACKAGED}: {PACKAGED.stat().st_size:,} bytes")
