"""The prior of access models: what holds for the workflows of any workload. One ships with the package (`default.prior`).

It has counts of contexts of structure alone, without names of agents or contents, so few that some workflows outweigh them.
It is learnt from recorded workloads, see `simulator/prediction/prior_training.py`.
"""

from functools import lru_cache
from pathlib import Path

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.predictor_service.state.file import StateRefused, read_state, write_state
from pbkv_cluster.reuse.model.access_model import VERSION, AccessModel, AccessUpdate

PRIOR_KIND = "access-prior"
PACKAGED = Path(__file__).with_name("default.prior")

_DEFAULT, _OFF = "default", "off"


def load_prior(setting: str) -> AccessModel:
    """The prior that `predictor.prior` names: `default`, `off` (nothing) or a file. It must not be changed.

    Raises:
        InvalidArgument: there is no such file, or it was not written by `save_prior` of this version.
    """
    if setting == _OFF:
        return AccessModel()
    return _read(PACKAGED if setting == _DEFAULT else Path(setting))


def save_prior(path: Path, prior: AccessModel) -> None:
    """Writes a prior for `load_prior`.

    Raises:
        OSError: it cannot be written.
    """
    write_state(path, PRIOR_KIND, VERSION, prior.export(workload=None, fresh=True).to_bytes())


@lru_cache(maxsize=4)
def _read(path: Path) -> AccessModel:
    try:
        update = AccessUpdate.from_bytes(read_state(path, PRIOR_KIND, VERSION))
        if update.workload is not None:
            raise ValueError("it is the model of a workload")
    except OSError as error:
        raise InvalidArgument("predictor.prior", f"cannot read {path}: {error.strerror}") from error
    except (StateRefused, ValueError) as error:
        raise InvalidArgument("predictor.prior", f"{path} does not fit: {error}") from error
    prior = AccessModel()
    prior.apply(update)
    return prior
