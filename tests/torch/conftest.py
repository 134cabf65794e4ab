"""Where there is no torch this folder is left out, which the summary says; elsewhere its fixtures."""

import pytest

from tests.conftest import MISSING_FOR_TORCH

if MISSING_FOR_TORCH:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.torch import pytorch_info

    @pytest.fixture(params=[example.desc for example in pytorch_info.inputs("cpu")])
    def options(request):
        """Arguments of RMSpropGraves, new ones for each test: a learning rate in a tensor may be written to."""
        return next(example.kwargs for example in pytorch_info.inputs("cpu") if example.desc == request.param)

    @pytest.fixture(params=range(len(pytorch_info.INFO.scheduler_inputs)), ids=pytorch_info.SCHEDULER_NAMES)
    def schedulers(request):
        """What makes the learning rate schedulers of one training, from its optimizer."""
        return pytorch_info.INFO.scheduler_inputs[request.param]
