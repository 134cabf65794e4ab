"""State from and to other libraries: files that they wrote, and they themselves where they are installed."""

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import Optimizer, RMSPropGraves, convert
from puzzlelib_rmsprop.errors import CheckpointError, SetupError
from tests.golden import DATA
from tests.standins import Net
from tests.test_checkpoint import Own, variance_of
from tests.tolerances import assert_close

SHAPES = {"fc0.W": (3, 4), "fc0.b": (3,)}
STATES = {"chainer": ["chainer_state.npz", "chainer_state.h5"], "nnabla": ["nnabla_state.h5"]}
FILES = [(peer, file) for peer, names in STATES.items() for file in names]
FROM = {"chainer": convert.fromChainer, "nnabla": convert.fromNnabla}
TO = {"chainer": convert.toChainer, "nnabla": convert.toNnabla}


def ours(params, globalState, gradOfLoss=True, dtype=np.float32, **hyper):
    optimizer = RMSPropGraves(gradOfLoss=gradOfLoss, **hyper)
    optimizer.setupOn(Net({name: Own.var(np.asarray(value, dtype)) for name, value in params.items()}), globalState)
    return optimizer


def take_steps(optimizer, grads, rows, sign=1):
    for row in rows:
        for name, values in grads.items():
            Own.put(optimizer.module.getVar(name).grad, sign * values[row])
        optimizer.update()


def states(optimizer):
    return {slot.names[0]: {entity: Own.get(array) for entity, array in slot.state.items()} for slot in optimizer._slots}


@pytest.fixture(params=FILES, ids=[name for _, name in FILES])
def saved(request):
    """A peer, its file of the state after ten steps, and what it computed."""
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
        # float32 both, over ten steps; the variance's digits cancel
        assert_close(final, Own.get(optimizer.module.getVar(name).data), 1e-5, name)
        moved = np.abs(final - parts["half"][name])
        assert moved.max() > 1e-3  # there was something to compare


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


def unchanged(optimizer, call):
    before, attrs = states(optimizer), optimizer.getAttrDict()
    try:
        call()
    finally:
        for name, state in before.items():
            for entity, array in state.items():
                assert np.array_equal(states(optimizer)[name][entity], array)
        assert optimizer.getAttrDict() == attrs


def test_files_that_do_not_fit(tmp_path):
    file = DATA / "chainer_state.npz"
    (tmp_path / "none.npz").write_bytes(b"nothing")
    plain = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    cases = [
        ({"fc1.W": np.zeros(3)}, file, {}, "'fc1.W'.*no 'fc1/W/n'.*it has 'fc0/W/n', 'fc0/b/n'"),
        ({"fc0.W": np.zeros((4, 3))}, file, {}, r"'fc0.W': its 'mg' must be of shape \(4, 3\).*\(3, 4\)"),
        (plain, file, {"transposed": ["fc9.W"]}, "no variable 'fc9.W' to transpose"),
        (plain, tmp_path / "none.npz", {}, "cannot read.*none.npz"),
        (plain, tmp_path / "absent.npz", {}, "cannot read.*absent.npz"),
        (plain, 3, {}, "must be a path or a mapping; got int"),
        (plain, {"fc0/W/n": np.zeros((3, 4))}, {}, "'fc0.W'.*no 'fc0/W/g'"),
        (plain, {3: 4}, {}, "the mapping cannot be used: AttributeError"),
        (plain, {**CHAINER, "fc0/W/n": [[1], [1, 2]]}, {}, "the mapping cannot be used: ValueError"),
        (plain, {**CHAINER, "fc0/W/n": "x"}, {}, "'fc0.W': the mapping: 'fc0/W/n' cannot be used"),
        (plain, {**CHAINER, "fc0/b/g": None}, {}, "'fc0.b': the mapping: 'fc0/b/g' cannot be used"),
        *[(plain, {**CHAINER, "t": t}, {}, "number of updates cannot be used") for t in ("x", np.nan, [1, 2], None, 2.5)],
        (plain, {**CHAINER, "t": -3}, {}, "t must be an int from 0 to.*got -3"),
        *[(plain, CHAINER, {"names": given}, "names must be a dict of") for given in (3, ["fc0.W"], {"fc0.W": 3})],
        (plain, CHAINER, {"names": {"fc9.W": "x"}}, "no variable 'fc9.W' to name"),
        *[(plain, CHAINER, {"transposed": given}, "transposed must be a list") for given in (3, None, "fc0.W", [3])],
    ]
    for params, source, more, message in cases:
        optimizer = ours(params, False)
        with pytest.raises(CheckpointError, match=message):
            unchanged(optimizer, lambda o=optimizer, s=source, m=more: convert.fromChainer(o, s, **m))
    wide = {key: value.astype(np.float64) for key, value in convert.chainer_nnabla._tree(file)[1].items()}
    with pytest.raises(CheckpointError, match="'mg' is float32 here; the mapping has float64.*without loss"):
        convert.fromChainer(ours(plain, False), wide)
    with pytest.raises(SetupError, match="is not set up"):
        convert.fromChainer(RMSPropGraves(), file)


CHAINER = {
    **{f"fc0/W/{key}": np.zeros((3, 4), np.float32) for key in ("n", "g", "delta")},
    **{f"fc0/b/{key}": np.zeros(3, np.float32) for key in ("n", "g", "delta")},
}


def test_what_cannot_be_given_back():
    optimizer = ours({name: np.zeros(shape) for name, shape in SHAPES.items()}, False)
    for back in (convert.toChainer, convert.toNnabla, lambda o, **more: convert.toTorch(o, torch_like(SHAPES), **more)):
        for given in (3, None, "fc0.W", [3]):
            with pytest.raises(CheckpointError, match="transposed must be a list"):
                back(optimizer, transposed=given)
        with pytest.raises(CheckpointError, match="no variable 'fc9.W' to transpose"):
            back(optimizer, transposed=["fc9.W"])
        with pytest.raises(SetupError, match="must be one of this library; got 3"):
            back(3)
    with pytest.raises(CheckpointError, match="'fc0.b': names give its path 'x' to another variable too"):
        convert.toChainer(optimizer, {"fc0.W": "x", "fc0.b": "/x/"})
    stateless = Optimizer()
    stateless.setupOn(optimizer.module)
    with pytest.raises(SetupError, match="'fc0.W': its state here has no 'delta'"):
        convert.toChainer(stateless)


# --------------------------------------------------------------------------------------- PyTorch's format


def torch_like(params, steps=3, momentum=0.5, indices=None, **group):
    """A state_dict as PyTorch writes it, in NumPy arrays."""
    rng = np.random.default_rng(1)
    state = {}
    for index, shape in enumerate(params.values()):
        mean = rng.standard_normal(shape).astype(np.float32)
        state[index] = {"step": steps, "grad_avg": mean, "square_avg": mean**2 + rng.random(shape).astype(np.float32)}
        if momentum:
            state[index]["momentum_buffer"] = rng.standard_normal(shape).astype(np.float32)
    group = {"lr": 0.25, "alpha": 0.9, "momentum": momentum, "eps": 1e-3, "centered": True, **group}
    return {"state": state, "param_groups": [{**group, "params": list(state) if indices is None else indices}]}


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
        for key, value in state.items():  # a rate of a power of two: exact
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


def plain_momentum():
    return ours({name: np.zeros(shape) for name, shape in SHAPES.items()}, False, momRate=0.0)


def given_state(state):
    found = torch_like(SHAPES)
    found["state"][0] = state
    return found


def test_state_dicts_that_do_not_fit():
    two_groups = torch_like(SHAPES)
    first = two_groups["param_groups"][0]
    two_groups["param_groups"] = [{**first, "params": [0]}, {**first, "params": [1], "lr": 0.5}]
    unset = torch_like(SHAPES)
    del unset["state"][1]["grad_avg"]
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    cases = [
        ({}, {}, "no state_dict of a PyTorch optimizer"),
        ({"state": {}, "param_groups": []}, {}, "no state_dict of a PyTorch optimizer"),
        (torch_like(SHAPES, centered=False), {}, r"RMSprop\(centered=True\); it is not centered"),
        ({"state": {}, "param_groups": [{"params": [0, 1], "lr": 1, "betas": 2}]}, {}, "has no 'alpha'"),
        (two_groups, {}, "groups differ in 'lr': 0.25 and 0.5"),
        (unset, {}, "'fc0.b'.*no 'grad_avg'"),
        (torch_like({"W": (3, 4)}), {}, "has 1 parameters, for these variables: fc0.W, fc0.b"),
        (torch_like(SHAPES), {"names": ["fc0.W", "x"]}, "no variable 'x'"),
        (torch_like(SHAPES), {"names": ["fc0.W", "fc0.W"]}, "for these variables: fc0.W, fc0.W"),
        (torch_like({"W": (4, 3), "b": (3,)}), {}, r"'fc0.W': its 'mg' must be of shape \(3, 4\)"),
        (torch_like(SHAPES, alpha=1.5), {}, "attributes in the file are not valid.*alpha.*got 1.5"),
        (torch_like(SHAPES, lr=np.nan), {}, "attributes in the file are not valid.*learnRate.*got nan"),
        (torch_like(SHAPES, eps=-1e-3), {}, "'eps' must be at least 0; got -0.001"),
        (torch_like(SHAPES, eps=1e200), {}, "cannot be used: OverflowError"),
        *[(torch_like(SHAPES, lr=lr), {}, "the state_dict cannot be used") for lr in ("x", None, [1], np.ones(2))],
        *[(torch_like(SHAPES, indices=params), {}, "the state_dict cannot be used") for params in (3, [[0], [1]])],
        (torch_like(SHAPES, indices=[0, 0]), {}, "has 2 parameters, for these variables"),
        (torch_like(SHAPES, param_names=3), {}, "the state_dict cannot be used"),
        *[(torch_like(SHAPES, steps=t), {}, "'fc0.W': the state_dict cannot be used") for t in ("x", np.nan, [1, 2], 2.5)],
        (torch_like(SHAPES, steps=2**63), {}, "t must be an int from 0 to"),
        *[(given_state(3), {}, "'fc0.W': the state_dict cannot be used: TypeError")],
        (given_state({"grad_avg": 0, "square_avg": 0}), {}, "'fc0.W': the state_dict has no 'step'"),
        *[(torch_like(SHAPES), {"names": given}, "names must be a list") for given in (3, "Wb", [["fc0.W"], "fc0.b"])],
        (torch_like(SHAPES), {"transposed": "fc0.W"}, "transposed must be a list"),
    ]
    for theirs, more, message in cases:
        optimizer = ours(params, True)
        with pytest.raises(CheckpointError, match=message):
            unchanged(optimizer, lambda o=optimizer, s=theirs, m=more: convert.fromTorch(o, s, **m))
    optimizer = ours(params, False)
    convert.fromTorch(optimizer, torch_like(SHAPES))
    optimizer.module.getVar("fc0.b").learnRate = 0
    with pytest.raises(CheckpointError, match=r"'fc0.b': its learning rate is 0"):
        convert.toTorch(optimizer, torch_like(SHAPES))


def test_state_in_other_dtypes_and_forms():
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    theirs = torch_like(SHAPES)
    narrow = ours(params, True, stateDtype="bfloat16")
    convert.fromTorch(narrow, theirs)
    # all of it rounded to bfloat16: eight bits
    mean, square = (theirs["state"][0][key].astype(np.float64) for key in ("grad_avg", "square_avg"))
    assert_close(square - mean**2, states(narrow)["fc0.W"]["variance"].astype(np.float64), 2.0**-8, "variance")
    back = convert.toTorch(narrow, theirs)["state"][0]
    assert back["square_avg"].dtype == np.float32
    assert_close(square, back["square_avg"], 2.0**-6, "mean square")
    wide = ours(params, False, dtype=np.float64)
    convert.fromTorch(wide, theirs)
    assert np.array_equal(states(wide)["fc0.W"]["variance"], np.maximum(square - mean**2, 0))  # every digit of float64
    assert convert.toTorch(wide, theirs)["state"][0]["square_avg"].dtype == np.float64


def test_the_mean_square_is_computed_in_float64(globalState):
    # as after many steps with one gradient, of 97.36 and a little more: float32 has no digit of the variance left
    optimizer = ours({"W": np.zeros(3)}, globalState)
    (slot,) = optimizer._slots
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
    # 97.36**2 has 13 bits before the point: float64 leaves 40 behind it
    assert np.all(np.abs(states(wide)["W"]["variance"] - 1e-9) < 2.0**-38)
    assert np.all(states(wide)["W"]["variance"] > 0)


def test_a_mean_square_beyond_the_dtype_is_refused(globalState):
    optimizer = ours({"W": np.zeros(3)}, globalState)
    optimizer._slots[0].state["mg"].fill(1e25)
    for back in (convert.toChainer, convert.toNnabla):
        with pytest.raises(CheckpointError, match="'W': its mean square goes beyond what float32 holds"):
            back(optimizer)
    with pytest.raises(CheckpointError, match="'W': its mean square goes beyond what float32 holds"):
        convert.toTorch(optimizer, torch_like({"W": (3,)}))


# ------------------------------------------------------------------- the peers themselves, where installed


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorch_and_back(momentum, dtype, globalState):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    start = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    grads = {name: rng.standard_normal((30, *shape)).astype(dtype) for name, shape in SHAPES.items()}

    def peer():
        params = [torch.nn.Parameter(torch.tensor(value)) for value in start.values()]
        # eps far below the deviation of these gradients, so that its place does not matter
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
    # back into a new one, which goes on where this one stands
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
