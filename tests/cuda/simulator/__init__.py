"""The simulator of tests/cudasim itself: PyCUDA runs on it, and every fault planted in a kernel is seen."""
