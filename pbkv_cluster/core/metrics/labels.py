"""Label values that come from clients. Prometheus keeps a series for each, so their number must be bounded."""

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
        """The label of a value. An empty one is `unnamed`; one that is too long is cut."""
        found = self._labels.get(value)
        if found is None:
            if len(self._labels) >= self._most:
                return OTHER
            found = value.encode()[:MAX_LABEL_BYTES].decode(errors="ignore") or UNNAMED
            self._labels[value] = found
        return found
