"""Hyperparameters and options that are refused."""

import pytest

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.errors import HyperParameterError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stateDtype": "float32"}, "stateDtype must be None or 'bfloat16'; got 'float32'"),
        ({"stateDtype": "float16"}, "stateDtype must be None or 'bfloat16'; got 'float16'"),
        ({"learnRate": 1e-40}, "learnRate must be 0, or at least 1.2e-38: float32 takes less for 0; got 1e-40"),
        ({"learnRate": 1e-320}, "learnRate must be 0, or at least 1.2e-38"),
        ({"stateDtype": 3.5}, "stateDtype must be None or 'bfloat16'; got 3.5"),
        ({"seed": -1}, r"seed must be an int from 0 to 2\*\*64 - 1; got -1"),
        ({"seed": 2**64}, "seed must be an int"),
        ({"seed": 1.0}, "seed must be an int.*got 1.0"),
        ({"seed": True}, "seed must be an int.*got True"),
        ({"stateDtype": "bfloat16", "capturable": True}, "capturable=True does not go with stateDtype='bfloat16'"),
    ],
)
def test_options_refused(options, message):
    with pytest.raises(HyperParameterError, match=message):
        RMSPropGraves(**options)
