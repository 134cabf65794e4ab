"""The kernels on CUDA, what launches and loads them, and the simulator of a GPU: tests that need one of the two."""
