"""Less usual ways in which PuzzleLib's users use an optimizer, and dicts and lists in place of a net."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Hook, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.errors import HyperParameterError, SetupError, VariableError
from tests.reference import Reference
from tests.standins import Net


def make_net(arrays, names=("fc0.W", "fc0.b")):
    rng = np.random.default_rng(0)
    net = Net({name: arrays.var(rng.standard_normal(5).astype(np.float32)) for name in names})
    for var in net.vars.values():
        arrays.put(var.grad, rng.standard_normal(5))
    return net


# ------------------------------------------------------------------------------------ keys in global mode


def test_dtypes_and_scalar_types_are_keys_alike(arrays):
    net, optimizer = make_net(arrays), RMSPropGraves()
    optimizer.setupOn(net, useGlobalState=True)
    for by_dtype in (optimizer.states, optimizer.globalVar, optimizer.shParams, optimizer.shGrads):
        assert list(by_dtype) == [np.dtype(np.float32)]
        assert by_dtype[np.float32] is by_dtype[np.dtype(np.float32)] is by_dtype.get(np.float32)
        assert np.float32 in by_dtype
        assert np.float64 not in by_dtype
        assert by_dtype.get(np.float64, 7) == 7
        for wrong in (np.float64, "float32x", "W"):
            with pytest.raises(KeyError):
                by_dtype[wrong]
    assert optimizer.shGrads[np.float32]["fc0.W"] is net.getVar("fc0.W").grad
    assert set(optimizer.states[np.float32]) == {"mg", "variance", "delta"}


def test_states_put_under_a_scalar_type_are_used(arrays):
    net, optimizer = make_net(arrays), RMSPropGraves()
    optimizer.setupOn(net, useGlobalState=True)
    state = {name: arrays.make(np.ones(array.shape, np.float32)) for name, array in optimizer.states[np.float32].items()}
    expected = {}
    for name, var in net.vars.items():
        expected[name] = Reference(arrays.get(var.data), dtype=np.float32)
        expected[name].mg, expected[name].variance, expected[name].delta = (np.ones(5, np.float32) for _ in range(3))
        expected[name].step(arrays.get(var.grad))
    optimizer.states[np.float32] = state
    optimizer.update()
    for name, var in net.vars.items():
        assert np.array_equal(arrays.get(var.data), expected[name].param), name


def test_ms_is_a_key_error_that_says_what_took_its_place(arrays, globalState):
    net, optimizer, seen = make_net(arrays), RMSPropGraves(), []
    optimizer.addHook(lambda var, state, stream: seen.append(state))
    optimizer.setupOn(net, globalState)
    optimizer.update()
    for state in (*optimizer.states.values(), *seen):
        with pytest.raises(KeyError, match=r"'ms' was replaced by 'variance': ms equals variance \+ mg\*mg"):
            state["ms"]
        assert "ms" not in state
        with pytest.raises(KeyError, match="^'other'$"):
            state["other"]


# ------------------------------------------------------------------------------------ rates of globalVar


@pytest.mark.parametrize("stateDtype", [None, "bfloat16"])
def test_rates_of_globalVar_are_factors_on_those_of_all_its_variables(arrays, stateDtype):
    if stateDtype and arrays.name.startswith("puzzlelib"):
        pytest.skip("PuzzleLib has no bfloat16")
    factors = {"learnRate": 0.5, "momRate": 0.25, "wc": 3.0}
    own = {"fc0.W": (1.0, 1.0, 0.5), "fc0.b": (0.3, 0.5, 0.0), "fc1.W": (2.0, 1.0, 1.0)}
    nets = [make_net(arrays, tuple(own)) for _ in range(2)]
    for net, optimizer in ((net, RMSPropGraves(1e-2, stateDtype=stateDtype)) for net in nets):
        optimizer.addHook(WeightDecay(0.1))
        optimizer.addHook(lambda var, state, stream: None)  # a hook that makes the decay run variable by variable
        optimizer.addHook(WeightDecay(0.2))
        optimizer.setupOn(net, useGlobalState=True)
        flat = optimizer.globalVar[np.float32]
        assert (flat.learnRate, flat.momRate, flat.wc) == (1.0, 1.0, 1.0)
        for step in range(4):
            for name, var in net.vars.items():
                if net is nets[0]:
                    var.learnRate, var.momRate, var.wc = own[name]
                else:  # the product as the variable's own rate
                    late = 1.0 if step < 2 else None
                    rates = zip(own[name], factors.values(), strict=True)
                    var.learnRate, var.momRate, var.wc = (rate * (late or factor) for rate, factor in rates)
                arrays.put(var.grad, np.arange(5) * 0.1 + step)
            if net is nets[0] and step == 2:
                for name, factor in factors.items():
                    setattr(flat, name, factor)
            optimizer.update()
    for name in own:
        assert np.array_equal(arrays.get(nets[0].getVar(name).data), arrays.get(nets[1].getVar(name).data)), name


def test_a_rate_of_globalVar_counts_before_the_first_update_and_stays(arrays):
    net, optimizer = make_net(arrays), RMSPropGraves()
    optimizer.setupOn(net, useGlobalState=True)
    optimizer.globalVar[np.float32].learnRate = 0
    before = {name: arrays.get(var.data) for name, var in net.vars.items()}
    optimizer.update()
    net.getVar("fc0.W").learnRate = 0.5  # a variable's own rate does not unfreeze it
    optimizer.update()
    for name, var in net.vars.items():
        assert np.array_equal(arrays.get(var.data), before[name])
    optimizer.globalVar[np.float32].learnRate = float("nan")
    with pytest.raises(HyperParameterError, match=r"globalVar\[float32\]'?: its learnRate"):
        optimizer.update()


# --------------------------------------------------------------------------------------------- variables


def test_a_name_that_is_listed_twice_counts_once(arrays, globalState):
    # a module that is used twice in a net
    class Twice(Net):
        def getVarTable(self):
            return {var: [name, name] for name, var in self.vars.items()}

    net, other = Twice(make_net(arrays).vars), make_net(arrays)
    for each in (net, other):
        optimizer = RMSPropGraves()
        optimizer.setupOn(each, globalState)
        optimizer.update()
    for name in net.vars:
        assert np.array_equal(arrays.get(net.getVar(name).data), arrays.get(other.getVar(name).data))


def test_a_second_optimizer_takes_over_a_tied_net(arrays):
    net = make_net(arrays, ("a",))
    net.vars["b"] = net.vars["a"]
    expected = Reference(arrays.get(net.getVar("a").data), dtype=np.float32)
    for _ in range(2):
        optimizer = RMSPropGraves()
        optimizer.setupOn(net, useGlobalState=True)
    assert net.getVar("a") is net.getVar("b")
    expected.step(arrays.get(net.getVar("a").grad))
    optimizer.update()
    assert np.array_equal(arrays.get(net.getVar("b").data), expected.param)


def test_variables_with_the_same_arrays_are_one(arrays, globalState):
    # a tied net after PuzzleLib's own optimizer in global mode
    net = make_net(arrays, ("a", "c"))
    first = net.vars["a"]
    net.vars["b"] = type(first)(first.data, grad=first.grad)
    before, grad = arrays.get(first.data), arrays.get(first.grad)
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    assert net.getVar("a") is net.getVar("b")
    expected = Reference(before, dtype=np.float32)
    for _ in range(2):
        expected.step(grad)
        optimizer.update()
    assert np.array_equal(arrays.get(net.getVar("b").data), expected.param)


def test_variables_with_the_same_arrays_and_other_rates_are_refused(arrays, globalState):
    net = make_net(arrays, ("a",))
    first = net.vars["a"]
    net.vars["b"] = type(first)(first.data, grad=first.grad)
    net.vars["b"].wc = 0.5
    with pytest.raises(VariableError, match="'a' and 'b' share their arrays but have wc 0.0 and 0.5; make them one"):
        RMSPropGraves().setupOn(net, globalState)


# ------------------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize(
    "hook", [lambda var, state: None, lambda var: None, lambda: None, lambda var, state, stream, more: None]
)
def test_a_hook_that_does_not_take_three_arguments_is_refused(hook):
    optimizer = RMSPropGraves()
    with pytest.raises(SetupError, match=r"a hook is called as hook\(var, state, stream\), but .* takes \(.*define it as"):
        optimizer.addHook(hook)
    assert optimizer.hooks == []


def test_hooks_of_every_kind_of_signature_are_taken():
    class Own(Hook):
        def __call__(self, var, state, stream=None):
            pass

    optimizer = RMSPropGraves()
    for hook in (Own(), lambda var, state, stream=None: None, lambda *args: None, print):
        optimizer.addHook(hook)
    assert len(optimizer.hooks) == 4


# ------------------------------------------------------------------------------------------ nets without a net


@pytest.mark.parametrize("kind", ["dict", "list", "tuple"])
def test_variables_without_a_net(arrays, globalState, kind):
    variables = make_net(arrays, ("w", "b")).vars
    for name, var in variables.items():
        var.name = name
    given = {"dict": variables, "list": list(variables.values()), "tuple": tuple(variables.values())}[kind]
    expected = {name: Reference(arrays.get(var.data), dtype=np.float32) for name, var in variables.items()}
    optimizer = RMSPropGraves()
    optimizer.setupOn(given, globalState)
    for _ in range(2):
        optimizer.update()
    for name, var in variables.items():
        for _ in range(2):
            expected[name].step(arrays.get(var.grad))
        assert np.array_equal(arrays.get(optimizer.module.getVar(name).data), expected[name].param), name
        assert optimizer.module.getVar(name) is var
    if not globalState:
        assert set(optimizer.states) == {"w", "b"}


def test_a_dict_is_used_itself():
    variables = {"w": Variable(np.zeros(3, np.float32))}
    optimizer = RMSPropGraves()
    optimizer.setupOn(variables)
    variables["w"] = Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))
    optimizer.update()
    assert variables["w"].data.all()


def test_variables_that_are_none_or_have_no_name_are_refused():
    good = Variable(np.zeros(3, np.float32), name="w")
    nameless = Variable(np.zeros(3, np.float32))
    nameless.name = None
    for given, message in (
        ({"w": np.zeros(3)}, r"variable 'w': setupOn takes Variables; got array.*Variable\(array, grad=gradient\)"),
        ([np.zeros(3)], "setupOn takes Variables; got array"),
        ({1: good}, "variable 1: its name must be text"),
        ([nameless], r"its name must be text: Variable\(array, name='w'\)"),
        ([good, Variable(np.zeros(3, np.float32), name="w")], "variable 'w': two variables of the list have this name"),
    ):
        with pytest.raises(VariableError, match=message):
            RMSPropGraves().setupOn(given)
    for empty in ({}, []):
        with pytest.raises(SetupError, match="has no variables to train"):
            RMSPropGraves().setupOn(empty)


# ---------------------------------------------------------------------------- methods that subclasses override


class Recording(RMSPropGraves):
    """Overrides every method that PuzzleLib's subclasses can override, and calls the base class's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def setupLocalStates(self, vartable):
        self.calls.append(("setupLocalStates", [names[0] for names in vartable.values()]))
        super().setupLocalStates(vartable)

    def setupGlobalState(self, vartable):
        self.calls.append(("setupGlobalState", [names[0] for names in vartable.values()]))
        super().setupGlobalState(vartable)

    def zeroGradLocalParams(self):
        self.calls.append("zeroGradLocalParams")
        super().zeroGradLocalParams()

    def zeroGradGlobalParams(self):
        self.calls.append("zeroGradGlobalParams")
        super().zeroGradGlobalParams()

    def updateLocalStates(self, useStreams, sync):
        self.calls.append(("updateLocalStates", self.t))
        super().updateLocalStates(useStreams, sync)

    def updateGlobalState(self):
        self.calls.append(("updateGlobalState", self.t))
        super().updateGlobalState()


def test_overridden_methods_are_called(arrays, globalState):
    nets = [make_net(arrays) for _ in range(2)]
    for net, optimizer in zip(nets, (Recording(), RMSPropGraves()), strict=True):
        optimizer.setupOn(net, globalState)
        optimizer.zeroGradParams()
        for var in net.vars.values():
            assert not arrays.get(var.grad).any()
            arrays.put(var.grad, np.arange(5))
        optimizer.update()
        if isinstance(optimizer, Recording):
            calls = optimizer.calls
    mode = "Global" if globalState else "Local"
    states = "State" if globalState else "States"
    assert calls == [
        (f"setup{mode}{states}", ["fc0.W", "fc0.b"]),
        f"zeroGrad{mode}Params",
        (f"update{mode}{states}", 1),
    ]
    for name in nets[0].vars:
        assert np.array_equal(arrays.get(nets[0].getVar(name).data), arrays.get(nets[1].getVar(name).data))


def test_an_override_that_clips_then_calls_the_parents(arrays, globalState):
    class Clipping(RMSPropGraves):
        def clip(self):
            for name in ("fc0.W", "fc0.b"):
                var = self.module.getVar(name)
                arrays.put(var.grad, np.clip(arrays.get(var.grad), -0.1, 0.1))
            self.module.getVar("fc0.b").learnRate = 0.5

        def updateLocalStates(self, useStreams, sync):
            self.clip()
            super().updateLocalStates(useStreams, sync)

        def updateGlobalState(self):
            self.clip()
            super().updateGlobalState()

    net, optimizer = make_net(arrays), Clipping()
    expected = {name: Reference(arrays.get(var.data), dtype=np.float32) for name, var in net.vars.items()}
    for name, var in net.vars.items():
        rate = 1e-4 * (0.5 if name == "fc0.b" else 1.0)
        expected[name].step(np.clip(arrays.get(var.grad), np.float32(-0.1), np.float32(0.1)), learnRate=rate)
    optimizer.setupOn(net, globalState)
    optimizer.update()
    for name, var in net.vars.items():
        assert np.array_equal(arrays.get(var.data), expected[name].param), name


def test_an_override_without_the_parents_is_all_there_is(arrays, globalState):
    class Own(RMSPropGraves):
        def updateLocalStates(self, useStreams, sync):
            pass

        def updateGlobalState(self):
            pass

    net, optimizer = make_net(arrays), Own()
    before = {name: arrays.get(var.data) for name, var in net.vars.items()}
    optimizer.setupOn(net, globalState)
    optimizer.update()
    assert optimizer.t == 1
    for name, var in net.vars.items():
        assert np.array_equal(arrays.get(var.data), before[name])


def test_states_made_by_an_override_are_used_or_missed_by_name(arrays):
    class Own(RMSPropGraves):
        def setupLocalStates(self, vartable):
            for var, names in vartable.items():
                if names[0] != self.left_out:
                    self.states[names[0]] = self.setupState(var)

    net, optimizer = make_net(arrays), Own()
    optimizer.left_out = None
    optimizer.setupOn(net)
    optimizer.update()
    optimizer.left_out = "fc0.b"
    with pytest.raises(VariableError, match="variable 'fc0.b': its state must be a dict of arrays; got None"):
        optimizer.setupOn(net)
    assert optimizer.t == 1  # as before


def test_a_global_set_up_that_moves_nothing_is_refused(arrays):
    class Own(RMSPropGraves):
        def setupGlobalState(self, vartable):
            pass

    net = make_net(arrays)
    with pytest.raises(SetupError, match=r"'fc0.W': Own.setupGlobalState\(\) did not move it.*call super\(\)"):
        Own().setupOn(net, useGlobalState=True)


def test_variables_without_names_are_called_by_their_place(tmp_path):
    """Default names depend on how many variables were created before, so state could go to a wrong variable."""

    def made():
        return Variable(np.zeros(3, np.float32), grad=np.zeros(3, np.float32))

    first, second = made(), made()
    first.grad[...] = 1.0
    optimizer = RMSPropGraves()
    optimizer.setupOn([first, second, Variable(np.zeros(2, np.float32), name="bias")])
    optimizer.update()
    assert list(optimizer.states) == ["0", "1", "bias"]
    optimizer.save(tmp_path / "run.hdf")
    second, first = made(), made()  # in another order
    other = RMSPropGraves()
    other.setupOn([first, second, Variable(np.zeros(2, np.float32), name="bias")])
    other.load(tmp_path / "run.hdf")
    assert other.states["0"]["mg"].all()
    assert not other.states["1"]["mg"].any()
