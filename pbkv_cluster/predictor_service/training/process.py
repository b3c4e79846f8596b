"""Runs one training job for its owner: `python -m pbkv_cluster.predictor_service.training.process < job > result`.

The pickled job comes on standard input, which the owner keeps open. When it is closed, the owner has ended, and this process
ends at once. That needs neither signals nor polling, and works however the owner ends. The answer is a pickled pair: the
result, and the traceback of a failure, else "".
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
        os.dup2(2, 1)  # what the job prints must not mix with the answer
        job = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_owner, daemon=True).start()
        answer: tuple[Any, str]
        try:
            answer = job.run(), ""
        except Exception:  # noqa: BLE001  # sent to the owner, which logs it
            answer = None, traceback.format_exc()
        answers.write(pickle.dumps(answer))


def _end_with_owner() -> None:
    os.read(0, 1)  # no more input comes: this returns when the owner has closed its end
    os._exit(1)


if __name__ == "__main__":
    main()
