"""GPUs, and the package by which blocks are copied to them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pbkv_cluster.cli.doctor.finding import Finding, error, ok, warning
from pbkv_cluster.cli.extras import is_installed

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
    wanted = config.engine.device.startswith("cuda")
    if not is_installed("torch"):
        yield warning("gpu", "not looked at: torch is not installed", "pip install 'pbkv-cluster[server]'")
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
                f"engine.device is {config.engine.device}, and no GPU is usable; {built}",
                "check nvidia-smi, and install a CUDA build of torch",
            )
        else:
            yield ok("gpu", f"none; workers run on the CPU ({built})")
        return
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    yield ok("gpu", ", ".join(f"{each.name} with {each.total_memory / _GIB:.0f} GiB" for each in names))
    if not is_installed("cupy"):
        yield warning(
            "cupy",
            "CuPy is not installed: host memory is not pinned, so that copies are slower",
            "pip install 'pbkv-cluster[gpu]'",
        )
    else:
        import cupy

        yield ok("cupy", f"CuPy {cupy.__version__}")
