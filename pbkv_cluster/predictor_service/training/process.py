"""Runs one training job for an owner: `python -m pbkv_cluster.predictor_service.training.process < job > result`.

The job comes pickled on the standard input, which the owner keeps open: when it closes, the owner has ended, and so does this
process, at once. That needs no signal and no polling, and holds however the owner ends. The answer is a pickled pair: the
result, and the traceback of what failed.
"""

import os
import pickle
import sys
import threading
import traceback
from typing import Any

_NICENESS = 10


def main() -> None:
    os.nice(_NICENESS)
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever is printed must not mix with the answer
        job = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_owner, daemon=True).start()
        answer: tuple[Any, str]
        try:
            answer = job.run(), ""
        except Exception:  # noqa: BLE001  # told to the owner, who logs it
            answer = None, traceback.format_exc()
        answers.write(pickle.dumps(answer))


def _end_with_owner() -> None:
    os.read(0, 1)  # nothing comes any more: returns when the owner's end is closed
    os._exit(1)


if __name__ == "__main__":
    main()
