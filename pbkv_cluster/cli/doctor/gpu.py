"""GPUs, and the package by which blocks are copied to them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pbkv_cluster.cli.doctor.finding import Finding, error, ok, warning
from pbkv_cluster.cli.extras import is_installed
from pbkv_cluster.core.locations.installation import install_command

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Config

_GIB = 1 << 30


def has_gpu() -> bool:
    """Whether torch is installed and sees a GPU."""
    if not is_installed("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def check_gpu(config: "Config") -> Iterator[Finding]:
    """The GPUs that torch sees, and CuPy."""
    engine = config.engine
    wanted = engine.device.startswith("cuda")
    if not is_installed("torch"):
        yield warning("gpu", "not looked at: torch is not installed", install_command("server"))
        return
    import torch

    if not torch.cuda.is_available():
        built = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "torch is a CPU build"
        )
        if wanted:
            yield error(
                "gpu",
                f"engine.device is {engine.device}, and no GPU is usable; {built}",
                "check nvidia-smi, and install a CUDA build of torch",
            )
        else:
            yield ok("gpu", f"none; workers run on the CPU ({built})")
        return
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    yield ok("gpu", ", ".join(f"{each.name} with {each.total_memory / _GIB:.0f} GiB" for each in names))
    if not (wanted or engine.device == "auto"):
        return
    if not config.cluster.address and len(names) < config.cluster.workers:
        yield error(
            "workers",
            f"cluster.workers is {config.cluster.workers}, and each needs a GPU: there are {len(names)}",
            "set cluster.workers to 0, which is one for each GPU, or engine.device to cpu",
        )
    if engine.type == "pbkv":
        yield check_cupy(engine.host_blocks, _cupy_version())


def _cupy_version() -> str:
    if not is_installed("cupy"):
        return ""
    import cupy

    return str(cupy.__version__)


def check_cupy(host_blocks: int, version: str) -> Finding:
    """What CuPy means for workers on GPUs.

    Args:
        host_blocks: `engine.host_blocks`.
        version: of CuPy; empty: it is not installed.
    """
    if version:
        return ok("cupy", f"CuPy {version}")
    missing, remedy = "CuPy is not installed", install_command("gpu")
    if not host_blocks:
        return ok("cupy", f"{missing}, nor needed: there is no host tier (engine.host_blocks is 0)")
    if host_blocks < 0:
        return warning("cupy", f"{missing}: workers will have no host tier", remedy)
    what = f"{missing}: the host tier of engine.host_blocks, {host_blocks:,} blocks, needs it, and no worker will start"
    return error("cupy", what, f"{remedy}, or set engine.host_blocks to -1 or 0")
