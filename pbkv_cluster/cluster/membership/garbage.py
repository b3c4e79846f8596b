"""When Python looks for objects that only hold each other."""

import gc


def collect_rarely() -> None:
    """Makes full garbage collections rare; for a process that serves, once it has started.

    What it has loaded stays until it ends, and is no longer looked at. What lives long besides, such as open workflows, has
    no cycles, and a full collection looks at all of it: a tenth of a second at some hundred workflows, and nothing is served.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)
