"""Imports the library and takes a step on a small net, and prints what each took. A script: it imports nothing else.

usage: python benchmarks/first_use.py DEVICE
"""

import sys
import time

clock = time.perf_counter
start = clock()
import h5py  # noqa: E402, F401
import numpy as np  # noqa: E402

others = clock()
from puzzlelib_rmsprop import Config, RMSPropGraves, Variable, gpuarray  # noqa: E402

imported = clock()
from puzzlelib_rmsprop.nets import Module  # noqa: E402

Config.backend = Config.Backend[sys.argv[1]]
net = Module()
for number, size in enumerate((64 * 100, 100, 100 * 30, 30, 15 * 30, 30)):
    ones = np.ones(size, np.float32)
    net.setVar(f"v{number}", Variable(gpuarray.to_gpu(ones), grad=gpuarray.to_gpu(ones)))
optimizer = RMSPropGraves()
made = clock()
optimizer.setupOn(net, useGlobalState=True)
set_up = clock()
optimizer.update()
net.getVar("v0").data.get()  # waits for a GPU
updated, end = clock(), time.monotonic()
times = {
    "numpy_and_h5py": others - start,
    "import": imported - others,
    "setupOn": set_up - made,
    "first_update": updated - set_up,
    "end": end,
}
print("{" + ", ".join(f'"{name}": {value!r}' for name, value in times.items()) + "}")
