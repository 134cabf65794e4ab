"""One contender in a process of its own: reads a line of JSON, does it, answers with one.

Frameworks do not share a process well: their thread pools, allocators and protobuf versions meet.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from . import contenders


def repeat(step, seconds: float, most: int) -> float:
    """Mean seconds of a call, over as many calls as fit in the time given, at least one."""
    count, start = 0, time.perf_counter()
    while True:
        step()
        count += 1
        spent = time.perf_counter() - start
        if count == most or spent > seconds:
            return spent / count


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is not an answer
    step = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "check":
                answer = contenders.check(order["name"])
            elif order["do"] == "make":
                step = None  # the last case's memory goes first
                rng = np.random.default_rng(0)
                params, grads = ([rng.standard_normal(n, np.float32) for n in order["sizes"]] for _ in range(2))
                step = contenders.CONTENDERS[order["name"]](params, grads)
                del params, grads
                for _ in range(3):  # compile, and warm up
                    step()
                answer = None
            else:
                answer = repeat(step, order["seconds"], order["most"])
            reply = {"answer": answer}
        except ImportError as error:
            reply = {"missing": error.name}
        except Exception as error:
            reply = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
