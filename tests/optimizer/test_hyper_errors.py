"""Invalid hyperparameters and options are refused."""

import decimal
import math

import numpy as np
import pytest

from puzzlelib_rmsprop import Config, RMSPropGraves
from puzzlelib_rmsprop.errors import HyperParameterError
from tests.refused import each, ready, refuse, rows, updated, var, watch
from tests.standins import Net


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stateDtype": "float32"}, "stateDtype must be None, 'bfloat16' or 'int8'; got 'float32'"),
        ({"stateDtype": "float16"}, "stateDtype must be None, 'bfloat16' or 'int8'; got 'float16'"),
        (
            {"learnRate": 1e-40},
            "learnRate must be 0, or at least 1.2e-38: smaller numbers are flushed to 0; got 1e-40",
        ),
        ({"learnRate": 1e-320}, "learnRate must be 0, or at least 1.2e-38"),
        ({"stateDtype": 3.5}, "stateDtype must be None, 'bfloat16' or 'int8'; got 3.5"),
        ({"seed": -1}, r"seed must be an int from 0 to 2\*\*64 - 1; got -1"),
        ({"seed": 2**64}, "seed must be an int"),
        ({"seed": 1.0}, "seed must be an int.*got 1.0"),
        ({"seed": True}, "seed must be an int.*got True"),
        ({"stateDtype": "bfloat16", "capturable": True}, "capturable=True cannot be combined with stateDtype='bfloat16'"),
    ],
)
def test_options_refused(options, message):
    with pytest.raises(HyperParameterError, match=message):
        RMSPropGraves(**options)


def rated(name, value, globalState=False):
    """Sets a variable's own rate and updates."""
    updated(lambda net, _: setattr(net.getVar("W"), name, value), globalState, W=var(), V=var())


class Unprintable:
    def __repr__(self):
        raise TypeError("not this one")


def update_at(learnRate):
    net, optimizer = ready()
    net.getVar("W").learnRate = learnRate
    optimizer.update()


def by_hand(rate, value):
    variable, optimizer = var(), RMSPropGraves()
    state = optimizer.setupState(variable)
    setattr(variable, rate, value)
    watch(Net(v=variable))
    optimizer.updateVar(variable, state)


def counted(t, act):
    net, optimizer = ready()
    optimizer.t = t
    watch(optimizer, net)
    optimizer.update() if act == "update" else optimizer.save("never-written.hdf")


TABLE = [
    *rows(
        HyperParameterError,
        (
            lambda: RMSPropGraves(learnRate=-1e-4),
            "learnRate must be a finite number, at least 0.*got -0.0001.*gradOfLoss=True",
        ),
        (lambda: RMSPropGraves(learnRate=math.nan), "learnRate must be a finite number.*got nan"),
        (lambda: RMSPropGraves(learnRate=math.inf), "learnRate.*got inf"),
        (lambda: RMSPropGraves(learnRate="0.1"), "learnRate must be a number; got '0.1' of type str"),
        (lambda: RMSPropGraves(learnRate=True), "learnRate must be a number; got True"),
        (lambda: RMSPropGraves(learnRate=None), "learnRate must be a number; got None"),
        (lambda: RMSPropGraves(learnRate=np.zeros(2)), "learnRate must be a number.*ndarray"),
        (lambda: RMSPropGraves(alpha=1.0), "alpha must be a finite number, at least 0 and below 1; got 1.0"),
        (lambda: RMSPropGraves(alpha=1 - 1e-12), r"alpha.*in float32, 1 - 2\*\*-25 and above is rounded to 1"),
        (lambda: RMSPropGraves(alpha=-0.1), "alpha.*got -0.1"),
        (lambda: RMSPropGraves(alpha=np.float32("nan")), "alpha.*nan"),
        (lambda: RMSPropGraves(momRate=1), "momRate must be a finite number, at least 0 and below 1; got 1"),
        (lambda: RMSPropGraves(momRate=1j), "momRate must be a number; got 1j of type complex"),
        (lambda: RMSPropGraves(epsilon=0), "epsilon must be a finite number, at least 1.17549e-38.*got 0"),
        (lambda: RMSPropGraves(epsilon=-1e-4), "epsilon.*got -0.0001"),
        (lambda: RMSPropGraves(epsilon=1e-50), "epsilon.*got 1e-50"),
        (lambda: setattr(RMSPropGraves(), "alpha", 2), "alpha.*got 2"),
        (lambda: RMSPropGraves().setAttr("momRate", "fast"), "momRate must be a number; got 'fast'"),
        (lambda: RMSPropGraves(learnRate=10**400), "learnRate must be a finite number.*got an int too large for a float"),
        (
            lambda: RMSPropGraves(learnRate=-(10**5000)),
            "learnRate must be a finite number.*got an int too large for a float",
        ),
        (lambda: RMSPropGraves(learnRate=1e39), r"learnRate.*got 1e\+39"),
        (
            lambda: RMSPropGraves(learnRate=decimal.Decimal("0.1")),
            "learnRate must be a number; got Decimal.*of type Decimal",
        ),
        (lambda: RMSPropGraves(learnRate=np.bool_(True)), "learnRate must be a number; got .*True.*of type bool"),
        (lambda: RMSPropGraves(learnRate=np.array([0.1])), "learnRate must be a number.*of type ndarray"),
        (lambda: RMSPropGraves(learnRate=np.timedelta64(1, "s")), "learnRate must be a number.*of type timedelta64"),
        (lambda: RMSPropGraves(learnRate=np.complex64(1)), "learnRate must be a number.*of type complex64"),
        (lambda: RMSPropGraves(learnRate=b"1"), "learnRate must be a number; got b'1' of type bytes"),
        (lambda: RMSPropGraves(learnRate={}), "learnRate must be a number; got {} of type dict"),
        (lambda: RMSPropGraves(learnRate=(x for x in [1])), "learnRate must be a number.*of type generator"),
        (lambda: RMSPropGraves(alpha=np.float64(1)), "alpha.*got .*1.0"),
        (lambda: RMSPropGraves(momRate=-1e-9), "momRate must be.*got -1e-09"),
        (lambda: RMSPropGraves(momRate=np.nan), "momRate.*got nan"),
        (lambda: RMSPropGraves(epsilon=math.nan), "epsilon.*got nan"),
        (lambda: RMSPropGraves(epsilon=math.inf), "epsilon.*got inf"),
        (lambda: RMSPropGraves(gradOfLoss="False"), "gradOfLoss must be True or False; got 'False'"),
        (lambda: RMSPropGraves(gradOfLoss=None), "gradOfLoss must be True or False; got None"),
        (lambda: RMSPropGraves(gradOfLoss=np.ones(2)), "gradOfLoss must be True or False; got array"),
        (lambda: RMSPropGraves(masterWeights="no"), "masterWeights must be True or False; got 'no'"),
        (lambda: RMSPropGraves(fuseZeroGrad=2), "fuseZeroGrad must be True or False; got 2"),
        (lambda: RMSPropGraves(capturable="x"), "capturable must be True or False; got 'x'"),
        (lambda: RMSPropGraves(seed=-1), r"seed must be an int from 0 to 2\*\*64 - 1; got -1"),
        (lambda: RMSPropGraves(seed=2**64), "seed must be an int.*got 18446744073709551616"),
        (lambda: RMSPropGraves(seed=1.0), "seed must be an int.*got 1.0"),
        (lambda: RMSPropGraves(seed=True), "seed must be an int.*got True"),
        (lambda: RMSPropGraves(stateDtype="float32"), "stateDtype must be None, 'bfloat16' or 'int8'; got 'float32'"),
        (lambda: RMSPropGraves(stateDtype="nonsense"), "stateDtype must be.*got 'nonsense'"),
        (lambda: RMSPropGraves(stateDtype=3), "stateDtype must be.*got 3"),
        *[
            (lambda name=name, value=value: setattr(ready()[1], name, value), f"{name} must be")
            for name, value in (
                *((name, "False") for name in ("gradOfLoss", "masterWeights", "fuseZeroGrad", "capturable", "shardState")),
                ("seed", -1),
                ("stateDtype", "float32"),
            )
        ],
        *[
            (lambda t=t, act=act: counted(t, act), "t must be an int from 0 to")
            for t in ("x", 1.5, -3, None, math.nan)
            for act in ("update", "save")
        ],
        *[
            (lambda name=name, mode=mode: rated(name, 1e300, mode), f"'W': its {name} must be.*; got 1e.300 .it overflows")
            for name in ("learnRate", "momRate", "wc")
            for mode in (False, True)
        ],
        *[
            (lambda rate=rate, value=value: by_hand(rate, value), f"its {rate} must be a finite number.*got")
            for rate in ("learnRate", "momRate", "wc")
            for value in ("x", math.nan)
        ],
        *[
            (
                lambda name=name, value=value, mode=mode: rated(name, value, mode),
                f"'W': its {name} must be a finite number.*got",
            )
            for name in ("learnRate", "momRate", "wc")
            for mode in (False, True)
            for value in (10**400, math.inf, None, "1", 1j, np.array("2"), np.zeros(2), decimal.Decimal(2), [1])
        ],
        *[  # Python refuses to print them
            (lambda given=given: given(10**5000), "must be .*; got a value of type int that cannot be printed")
            for given in (
                lambda value: RMSPropGraves(seed=value),
                lambda value: RMSPropGraves(fuseZeroGrad=value),
                lambda value: update_at(value),
            )
        ],
        (lambda: RMSPropGraves(learnRate=Unprintable()), "learnRate must be a number; got a value of type Unprintable"),
        (
            lambda: updated(lambda n, o: setattr(n.getVar("W"), "learnRate", math.nan), W=var()),
            "'W': its learnRate.*got nan",
        ),
        (
            lambda: updated(lambda n, o: setattr(n.getVar("W"), "momRate", -1), W=var()),
            "'W': its momRate.*at least 0; got -1",
        ),
        (lambda: updated(lambda n, o: setattr(n.getVar("W"), "wc", "x"), True, W=var()), "'W': its wc must be.*got 'x'"),
    ),
]


# with Config.backend = cuda: gpuarray's arrays lie on the GPU
CUDA = [
    (lambda: rated("learnRate", math.nan), HyperParameterError, "'W': its learnRate.*got nan"),
    (lambda: rated("momRate", -1, True), HyperParameterError, "'W': its momRate.*got -1"),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)


@each(CUDA)
def test_refused_on_cuda(cuda, call, error, message):
    refuse(call, error, message)


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2), 2])
def test_ints_of_any_kind_are_taken(value):
    Config.numThreads = value
    assert type(Config.numThreads) is int
    assert RMSPropGraves(seed=value).seed == 2
    assert RMSPropGraves(gradOfLoss=np.bool_(True)).gradOfLoss is True


@pytest.mark.parametrize(
    "value", [1, np.float32(0.5), np.int64(0), np.float64(1e-3), np.float16(0.5), np.longdouble(0.5), np.uint8(1)]
)
def test_numbers_of_any_kind_are_taken(value):
    assert RMSPropGraves(learnRate=value).learnRate == float(value)
