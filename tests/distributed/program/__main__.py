"""Runs checks or a disaster on every process: ``python -m tests.distributed.program PRELUDE NAME...`` under mpirun.

Every check runs on all processes and may not rely on the library to collect the results.
"""

import json
import pkgutil
import sys
import traceback
from importlib import import_module

from mpi4py import MPI

from tests.distributed import program

# the CUDA simulator must be loaded before PyCUDA is imported
exec(sys.argv[1])


def run(names, checks):
    for name in names:
        if getattr(checks[name], "disaster", False):
            checks[name]()
            return
        fault = None
        try:
            checks[name]()
        except BaseException:
            fault = traceback.format_exc()
        faults = MPI.COMM_WORLD.gather(fault)
        if MPI.COMM_WORLD.rank == 0:
            told = {f"process {rank}": text for rank, text in enumerate(faults) if text}
            print("RESULT " + json.dumps({"name": name, "faults": told}), flush=True)


for module in pkgutil.iter_modules(program.__path__, f"{program.__name__}."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
run(sys.argv[2:], sys.modules[f"{program.__name__}.group"].CHECKS)
