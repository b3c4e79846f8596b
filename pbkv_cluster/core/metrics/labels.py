"""Label values that come from clients. Prometheus keeps a series for each, so their number must be bounded."""

from xxhash import xxh3_64_hexdigest

OTHER = "other"
UNNAMED = "unnamed"
MAX_LABEL_BYTES = 128


class BoundedLabels:
    """The first so many values keep their names; all later ones are `other`, so that no counter ever loses what it had."""

    def __init__(self, most: int) -> None:
        """`most`: values with a name of their own."""
        self._most = most
        self._labels: dict[str, str] = {}

    def label(self, value: str) -> str:
        """The label of a value: itself. An empty one is `unnamed`; one that is too long is cut, and ends with a hash."""
        found = self._labels.get(value)
        if found is None:
            if len(self._labels) >= self._most:
                return OTHER
            found = value or UNNAMED
            if value in (OTHER, UNNAMED) or len(value.encode()) > MAX_LABEL_BYTES:  # two values must never have one label
                beginning = value.encode()[: MAX_LABEL_BYTES // 2].decode(errors="ignore")
                found = f"{beginning}-{xxh3_64_hexdigest(value.encode())[:8]}"
            self._labels[value] = found
        return found
