"""What tells a LoRA adapter's weights from others: vLLM's own keys know its name and path, behind which files may change."""

from collections import OrderedDict
from pathlib import Path

import xxhash

_FILES = ("adapter_config.json", "adapter_model*", "new_embeddings*")  # what vLLM reads of an adapter's folder
_PART_BYTES = 16 << 20
_MAX_KNOWN = 1024  # adapters

_Signature = tuple[tuple[str, int, int, int], ...]


class AdapterDigests:
    """Digests of the files of adapters, read again when their sizes or times have changed."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[_Signature, bytes]] = OrderedDict()

    def of(self, path: str) -> bytes | None:
        """The digest of an adapter's files; None: the path is no local folder with weights of an adapter."""
        try:
            files = sorted({file for pattern in _FILES for file in Path(path).glob(pattern) if file.is_file()})
            if not any(file.name.startswith("adapter_model") for file in files):
                return None
            signature = tuple(_signed(file) for file in files)
            known = self._known.get(path)
            if known is None or known[0] != signature:
                known = self._known[path] = signature, _digest(files)
        except OSError:  # it is being replaced
            return None
        self._known.move_to_end(path)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return known[1]


def _signed(file: Path) -> tuple[str, int, int, int]:
    facts = file.stat()
    return file.name, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _digest(files: list[Path]) -> bytes:
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size};".encode())
        with file.open("rb") as stream:
            while part := stream.read(_PART_BYTES):
                digest.update(part)
    return digest.digest()
