"""The commands ``python -m puzzlelib_rmsprop doctor`` and ``inspect``."""
