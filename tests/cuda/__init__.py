"""Tests of the CUDA kernels, their launches and the simulator. They need a GPU or the simulator."""
