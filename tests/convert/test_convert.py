"""Importing and exporting state: files of other libraries, synthetic states, and the libraries themselves if installed."""

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import convert
from tests.checkpoint.training import Own, variance_of
from tests.convert.peers import FROM, SHAPES, STATES, TO, ours, plain_momentum, states, take_steps, torch_like
from tests.golden import DATA
from tests.tolerances import assert_close

FILES = [(peer, file) for peer, names in STATES.items() for file in names]


@pytest.fixture(params=FILES, ids=[name for _, name in FILES])
def saved(request):
    """A library, its file of the state after ten steps, and its results."""
    peer, name = request.param
    golden = np.load(DATA / f"{peer}_steps.npz")
    parts = {what: {n: golden[f"{what}.{n.replace('.', '/')}"] for n in SHAPES} for what in ("half", "final", "grads")}
    keys = {"learnRate": "lr", "alpha": "alpha", "momRate": "momentum", "epsilon": "eps"}
    return peer, DATA / name, parts, {ours: float(golden[theirs]) for ours, theirs in keys.items()}


@pytest.mark.parametrize("gradOfLoss", [False, True])
def test_a_peers_file_goes_on_here_as_there(saved, gradOfLoss, globalState):
    peer, file, parts, hyper = saved
    optimizer = ours(parts["half"], globalState, gradOfLoss, **hyper)
    FROM[peer](optimizer, file)
    assert optimizer.t == 10
    take_steps(optimizer, parts["grads"], range(10, 20), 1 if gradOfLoss else -1)
    for name, final in parts["final"].items():
        # both are float32, over ten steps; the variance loses digits by cancellation
        assert_close(final, Own.get(optimizer.module.getVar(name).data), 1e-5, name)
        moved = np.abs(final - parts["half"][name])
        assert moved.max() > 1e-3  # the parameters have moved


@pytest.mark.parametrize("gradOfLoss", [False, True])
def test_back_it_is_what_the_file_had(saved, gradOfLoss, globalState):
    peer, file, parts, hyper = saved
    optimizer = ours(parts["half"], globalState, gradOfLoss, **hyper)
    FROM[peer](optimizer, file)
    back, (_, expected) = TO[peer](optimizer), convert.chainer_nnabla._tree(file)
    assert back.keys() == expected.keys()
    for key, array in expected.items():
        assert np.array_equal(back[key], array) or key == "epoch", key
    again = ours(parts["half"], not globalState, gradOfLoss, **hyper)
    FROM[peer](again, back)
    for name, state in states(optimizer).items():
        for entity, array in state.items():
            assert np.array_equal(states(again)[name][entity], array)


def test_names_and_transposed_weights(saved):
    peer, file, parts, hyper = saved
    turned = {"here.W": parts["half"]["fc0.W"].T.copy(), "here.b": parts["half"]["fc0.b"]}
    names = {"here.W": "/fc0/W", "here.b": "fc0/b"}
    optimizer = ours(turned, False, **hyper)
    FROM[peer](optimizer, file, names=names, transposed=["here.W"])
    take_steps(
        optimizer, {"here.W": parts["grads"]["fc0.W"].swapaxes(1, 2), "here.b": parts["grads"]["fc0.b"]}, range(10, 20)
    )
    assert_close(parts["final"]["fc0.W"].T, Own.get(optimizer.module.getVar("here.W").data), 1e-5, "W")
    assert TO[peer](optimizer, names, ["here.W"])["fc0/W/n"].shape == (3, 4)


@pytest.mark.parametrize("gradOfLoss", [False, True])
def test_what_becomes_of_each_part(gradOfLoss, globalState):
    theirs = torch_like(SHAPES)
    optimizer = ours({name: np.zeros(shape) for name, shape in SHAPES.items()}, globalState, gradOfLoss)
    convert.fromTorch(optimizer, theirs)
    assert optimizer.getAttrDict() == {"t": 3, "learnRate": 0.25, "alpha": 0.9, "momRate": 0.5, "epsilon": 1e-6}
    for index, name in enumerate(SHAPES):
        state, found = theirs["state"][index], states(optimizer)[name]
        assert np.array_equal(found["mg"], state["grad_avg"] if gradOfLoss else -state["grad_avg"])
        assert np.array_equal(found["variance"], variance_of(state["grad_avg"], state["square_avg"]))
        assert np.array_equal(found["delta"], np.float32(-0.25) * state["momentum_buffer"])
    back = convert.toTorch(optimizer, theirs)
    assert back["param_groups"][0] == theirs["param_groups"][0]
    for index, state in theirs["state"].items():
        for key, value in state.items():  # the rate is a power of two: exact
            assert np.array_equal(back["state"][index][key], value), key


def test_names_order_and_untouched_parameters():
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    theirs = torch_like({"b": (3,), "W": (4, 3)})
    for way in ("names", "param_names"):
        optimizer = ours(params, True)
        if way == "names":
            convert.fromTorch(optimizer, theirs, names=["fc0.b", "fc0.W"], transposed=["fc0.W"])
        else:
            named = torch_like({"b": (3,), "W": (4, 3)}, param_names=["fc0.b", "fc0.W"])
            convert.fromTorch(optimizer, named, transposed=["fc0.W"])
        state = theirs["state"][1]
        assert np.array_equal(states(optimizer)["fc0.W"]["variance"], variance_of(state["grad_avg"], state["square_avg"]).T)
    back = convert.toTorch(optimizer, theirs, names=["fc0.b", "fc0.W"], transposed=["fc0.W"])
    assert np.array_equal(back["state"][1]["square_avg"], theirs["state"][1]["square_avg"])
    del theirs["state"][1]
    convert.fromTorch(optimizer, theirs, names=["fc0.b", "fc0.W"])
    assert not states(optimizer)["fc0.W"]["variance"].any()
    assert not any(
        "momentum_buffer" in state for state in convert.toTorch(plain_momentum(), torch_like(SHAPES))["state"].values()
    )


def test_state_in_other_dtypes_and_forms():
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    theirs = torch_like(SHAPES)
    narrow = ours(params, True, stateDtype="bfloat16")
    convert.fromTorch(narrow, theirs)
    # everything is rounded to bfloat16: eight bits
    mean, square = (theirs["state"][0][key].astype(np.float64) for key in ("grad_avg", "square_avg"))
    assert_close(square - mean**2, states(narrow)["fc0.W"]["variance"].astype(np.float64), 2.0**-8, "variance")
    back = np.asarray(convert.toTorch(narrow, theirs)["state"][0]["square_avg"])  # a tensor if PyTorch is imported
    assert back.dtype == np.float32
    assert_close(square, back, 2.0**-6, "mean square")
    wide = ours(params, False, dtype=np.float64)
    convert.fromTorch(wide, theirs)
    assert np.array_equal(states(wide)["fc0.W"]["variance"], np.maximum(square - mean**2, 0))  # every digit of float64
    assert np.asarray(convert.toTorch(wide, theirs)["state"][0]["square_avg"]).dtype == np.float64


def test_the_mean_square_is_computed_in_float64(globalState):
    # as after many steps with gradients near 97.36: in float32 no digit of the variance is left
    optimizer = ours({"W": np.zeros(3)}, globalState)
    (slot,) = optimizer._variables
    slot.state["mg"].set(np.array([97.36, 0.5, 3.0], np.float32))
    slot.state["variance"].set(np.array([1e-3, 0.0, 2.5], np.float32))
    mg, variance = (slot.state[entity].get().astype(np.longdouble) for entity in ("mg", "variance"))
    for back in (convert.toChainer, convert.toNnabla):
        found = back(optimizer)["W/n"]
        assert found.dtype == np.float32
        assert np.array_equal(found, (variance + mg**2).astype(np.float32))
    mg64, square = np.float64(97.36), np.float64(97.36) ** 2 + 1e-9
    group = torch_like({"W": (3,)}, momentum=0.0)
    group["state"][0] = {"step": 1, "grad_avg": np.full(3, mg64), "square_avg": np.full(3, square)}
    wide = ours({"W": np.zeros(3)}, globalState, dtype=np.float64)
    convert.fromTorch(wide, group)
    # 97.36**2 has 13 integer bits: float64 leaves 40 fractional bits
    assert np.all(np.abs(states(wide)["W"]["variance"] - 1e-9) < 2.0**-38)
    assert np.all(states(wide)["W"]["variance"] > 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorch_and_back(momentum, dtype, globalState):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    start = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    grads = {name: rng.standard_normal((30, *shape)).astype(dtype) for name, shape in SHAPES.items()}

    def peer():
        params = [torch.nn.Parameter(torch.tensor(value)) for value in start.values()]
        # eps is far below the deviation of these gradients, so its place does not matter
        return params, torch.optim.RMSprop(params, lr=1e-2, alpha=0.9, eps=1e-8, momentum=momentum, centered=True)

    def steps(params, optimizer, rows):
        for row in rows:
            for param, values in zip(params, grads.values(), strict=True):
                param.grad = torch.tensor(values[row])
            optimizer.step()

    params, theirs = peer()
    steps(params, theirs, range(10))
    mine = ours({n: p.detach().numpy().copy() for n, p in zip(SHAPES, params, strict=True)}, globalState, dtype=dtype)
    convert.fromTorch(mine, theirs.state_dict())
    assert mine.t == 10
    take_steps(mine, grads, range(10, 20))
    steps(params, theirs, range(10, 20))
    tolerance = {"float32": 2e-5, "float64": 1e-7}[dtype]  # eps is 1e-8 of a deviation of about 1
    for name, param in zip(SHAPES, params, strict=True):
        assert_close(param.detach().numpy(), Own.get(mine.module.getVar(name).data), tolerance, name)
    # export into a new optimizer, which continues from here
    others, again = peer()
    again.load_state_dict(convert.toTorch(mine, again.state_dict()))
    assert again.state_dict()["param_groups"][0]["eps"] == pytest.approx(1e-8, rel=1e-12)
    with torch.no_grad():
        for name, param in zip(SHAPES, others, strict=True):
            param.copy_(torch.tensor(np.array(Own.get(mine.module.getVar(name).data))))
    steps(others, again, range(20, 30))
    steps(params, theirs, range(20, 30))
    for name, param, other in zip(SHAPES, params, others, strict=True):
        assert_close(param.detach().numpy(), other.detach().numpy(), 3 * tolerance, name)


@pytest.mark.parametrize("peer", ["chainer", "nnabla"])
def test_the_peer_goes_on_from_ours(peer, tmp_path):
    module = pytest.importorskip(peer)
    golden = np.load(DATA / f"{peer}_steps.npz")
    hyper = {"lr": float(golden["lr"]), "momentum": float(golden["momentum"]), "eps": float(golden["eps"])}
    params = {name: golden[f"half.{name.replace('.', '/')}"] for name in SHAPES}
    grads = {name: golden[f"grads.{name.replace('.', '/')}"] for name in SHAPES}
    mine = ours(params, True)
    FROM[peer](mine, DATA / STATES[peer][0])
    if peer == "chainer":
        chain = module.Chain()
        with chain.init_scope():
            chain.fc0 = module.Chain()
            with chain.fc0.init_scope():
                chain.fc0.W, chain.fc0.b = (module.Parameter(params[f"fc0.{each}"].copy()) for each in "Wb")
        theirs = module.optimizers.RMSpropGraves(alpha=float(golden["alpha"]), **hyper).setup(chain)
        np.savez(tmp_path / "state.npz", **convert.toChainer(mine))
        module.serializers.load_npz(tmp_path / "state.npz", theirs)
        assert theirs.t == 10
        values = {"fc0.W": chain.fc0.W, "fc0.b": chain.fc0.b}
    else:
        solvers = pytest.importorskip("nnabla.solvers")
        values = {name.replace(".", "/"): module.Variable.from_numpy_array(value.copy()) for name, value in params.items()}
        theirs = solvers.RMSpropGraves(decay=float(golden["alpha"]), **hyper)
        theirs.set_parameters(values)
        with h5py.File(tmp_path / "state.h5", "w") as file:
            for key, content in convert.toNnabla(mine).items():
                file[key] = content
        theirs.load_states(str(tmp_path / "state.h5"))
    for row in range(10, 20):
        for name, value in values.items():
            grad = grads[name.replace("/", ".")][row]
            if peer == "chainer":
                value.grad = grad.copy()
            else:
                value.g = grad
        theirs.update()
    for name, value in values.items():
        found = value.array if peer == "chainer" else value.d
        assert np.array_equal(found, golden[f"final.{name.replace('.', '/')}"])
