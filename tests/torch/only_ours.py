"""A plugin of pytest for PyTorch's own test files: their table of optimizers holds ours alone. See docs/pytorch-tests.md.

``OURS=BFLOAT16_INFO`` in the environment picks the one whose state is bfloat16, ``INT8_INFO`` that with 8 bits.
"""

import os

from torch.testing._internal import common_optimizers

from tests.torch import pytorch_info

common_optimizers.optim_db[:] = [getattr(pytorch_info, os.environ.get("OURS", "INFO"))]
