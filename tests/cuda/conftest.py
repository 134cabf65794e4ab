"""Fixtures of the CUDA tests."""

import pytest

# for helpers whose assertions should be rewritten as those of tests
pytest.register_assert_rewrite("tests.cuda.variables", "tests.cuda.extended")


@pytest.fixture
def kernels(cuda):
    """kernels/cuda.py, with its kernels loaded."""
    from puzzlelib_rmsprop.kernels import cuda as module

    module.function("statistics_conclude")
    return module
