"""Skips this folder if PyTorch is not installed, as the test summary reports; otherwise defines its fixtures."""

import pytest

from tests.conftest import MISSING_FOR_TORCH

if MISSING_FOR_TORCH:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.torch import pytorch_info

    def rounded():
        return [*pytorch_info.bfloat16_inputs("cpu"), *pytorch_info.int8_inputs("cpu")]

    EXACT = [example.desc for example in pytorch_info.inputs("cpu")]
    ROUNDED = [example.desc for example in rounded()]

    def arguments(desc):
        """Returns new arguments for each test, as a learning rate tensor may be modified."""
        made = [*pytorch_info.inputs("cpu"), *rounded()]
        return next(example.kwargs for example in made if example.desc == desc)

    @pytest.fixture(params=[*EXACT, *ROUNDED])
    def options(request):
        """Arguments of RMSpropGraves."""
        return arguments(request.param)

    @pytest.fixture(params=EXACT)
    def exact_options(request):
        """Arguments without stochastic rounding, which depends on an element's place in the whole model."""
        return arguments(request.param)

    @pytest.fixture(params=range(len(pytorch_info.SCHEDULERS)), ids=[*pytorch_info.SCHEDULERS])
    def schedulers(request):
        """Returns a function that creates the schedulers of a training for its optimizer."""
        return pytorch_info.INFO.scheduler_inputs[request.param]
