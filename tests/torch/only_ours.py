"""A pytest plugin for PyTorch's own test files: it reduces their table of optimizers to ours. See docs/pytorch-tests.md.

``OURS=BFLOAT16_INFO`` in the environment selects the one with bfloat16 state, ``INT8_INFO`` the one with 8-bit state.
"""

import os

from torch.testing._internal import common_optimizers

from tests.torch import pytorch_info

common_optimizers.optim_db[:] = [getattr(pytorch_info, os.environ.get("OURS", "INFO"))]
