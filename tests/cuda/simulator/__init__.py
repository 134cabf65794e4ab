"""Tests of the simulator of tests/cudasim: PyCUDA runs on it, and it reports every fault planted in a kernel."""
