"""How long a GPU would take, by a model with a handful of constants.

    prefill of n tokens from position s    token * n + context * ((s + n)^2 - s^2) / 2
    one token each for m sequences         base + sequence * m + context * (context tokens of all m)
    b blocks from host memory              b * block_bytes / bandwidth
    b blocks from the disk                 b * (latency + block_bytes / disk bandwidth)

A batch with prefills and decodes takes the sum. A copy delays all that is computed by `copy_delay` of its time: by little where
copies run beside compute and only compete with it for memory bandwidth, as those of `gpu_worker` do, by all of it in an engine
that waits for its copies. The default constants assume 1, the worst case, and those of `machines` .1; `pbkv calibrate` measures
it. Prefill is bound by arithmetic, whose attention part grows with the position;
decode by reading the weights once and every sequence's KV (Pope et al.: Efficiently scaling transformer inference, arXiv
2211.05102).
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pbkv_cluster.core.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class CostModel:
    """The constants. The defaults are calculated, not measured: a dense model of 14 B parameters in 16 bits (48 layers, 8 KV
    heads of 128, 40 query heads) on a GPU with 990 TFLOP/s at 50 % and 3.35 TB/s at 80 % utilisation, and a link of 25 GB/s to
    the host. `pbkv calibrate` fits them to a real model and device.
    """

    prefill_token_s: float = 5.7e-5  # 2 * 14e9 operations
    prefill_context_s: float = 2.0e-9  # for each token and each token before it: 4 * 40 * 128 * 48 operations
    decode_base_s: float = 1.05e-2  # 28 GB of weights
    decode_sequence_s: float = 3.0e-5
    decode_context_s: float = 7.3e-8  # 196,608 bytes of KV for each token of context
    host_bytes_per_s: float = 2.5e10
    block_bytes: int = 3_145_728  # 16 tokens
    copy_delay: float = 1.0  # share of the time of a copy over the link by which it delays compute; the worst case, assumed
    disk_bytes_per_s: float = 3e9  # of reads, and likewise of writes beside them: assumed, for one thread and one NVMe disk
    disk_latency_s: float = 1e-4  # of each block

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a constant is negative or not finite, or the bandwidth is 0.
        """
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InvalidArgument(f"cost_model.{item.name}", f"must be a number, finite and not negative, got {value!r}")
        for name in ("host_bytes_per_s", "disk_bytes_per_s"):
            if getattr(self, name) == 0:
                raise InvalidArgument(f"cost_model.{name}", "must be above 0")
        if self.copy_delay > 1:
            raise InvalidArgument("cost_model.copy_delay", f"must be at most 1, got {self.copy_delay}")

    def prefill_seconds(self, start: int, tokens: int) -> float:
        """Prefill of `tokens` tokens that follow `start` others."""
        end = start + tokens
        return self.prefill_token_s * tokens + self.prefill_context_s * (end * end - start * start) / 2

    def decode_seconds(self, sequences: int, context_tokens: int) -> float:
        """One token for each of some sequences, which have `context_tokens` tokens in total."""
        if not sequences:
            return 0.0
        return self.decode_base_s + self.decode_sequence_s * sequences + self.decode_context_s * context_tokens

    def decode_until(self, until: float, now: float, sequences: int, context_tokens: int, batches: int) -> tuple[float, int]:
        """Batches of one token for each of some sequences, one after the other, from `now` until the clock reads `until`.

        At least one batch and at most `batches` are run. The time is added up batch by batch, so that it is rounded as if each
        batch had been timed on its own.

        Returns:
            What the clock reads then, and how many batches have been run.
        """
        fixed = self.decode_base_s + self.decode_sequence_s * sequences
        each = self.decode_context_s
        done = 0
        while done < batches and (now < until or not done):
            now += fixed + each * context_tokens
            context_tokens += sequences
            done += 1
        return now, done

    def copy_seconds(self, blocks: int) -> float:
        """Copying some blocks between host memory and GPU."""
        return blocks * self.block_bytes / self.host_bytes_per_s

    def disk_seconds(self, blocks: int) -> float:
        """Reading some blocks from the disk to host memory, or writing them, one after the other."""
        return blocks * (self.disk_latency_s + self.block_bytes / self.disk_bytes_per_s)

    def save(self, path: Path) -> None:
        """Writes the constants as JSON.

        Raises:
            InvalidArgument: the file cannot be written.
        """
        try:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise InvalidArgument("--out", f"cannot write {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> "CostModel":
        """Reads a file that `save` wrote. Missing constants have their defaults.

        Raises:
            InvalidArgument: the file cannot be read, or contains anything but valid constants.
        """
        try:
            values = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidArgument("cost_model", f"cannot read {path}: {error}") from error
        if not isinstance(values, dict):
            raise InvalidArgument("cost_model", f"{path} must hold a JSON object")
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise InvalidArgument(f"cost_model.{name}", f"is unknown; must be one of {', '.join(known)}")
        return cls(**values)
