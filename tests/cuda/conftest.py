"""What the tests of CUDA share: the module that launches kernels."""

import pytest

# helpers whose assertions explain themselves as tests' do
pytest.register_assert_rewrite("tests.cuda.variables", "tests.cuda.extended")


@pytest.fixture
def kernels(cuda):
    """kernels/cuda.py, with its kernels loaded."""
    from puzzlelib_rmsprop.kernels import cuda as module

    module.function("statistics_conclude")
    return module
