"""PyTorch's own tests of an optimizer's state and copies, under the same names: see test_pytorch_own.py."""

import copy
import pickle

import pytest
import torch

from tests.torch.case import assert_equal, assert_same, build, parameter, parameters, saved, snapshot, trained, twin
from tests.torch.pytorch_info import INFO

NAMED = pytest.mark.parametrize("named", [(False, False), (False, True), (True, False), (True, True)], ids=str)


def without_names(state_dict):
    return {
        "state": state_dict["state"],
        "param_groups": [{k: v for k, v in group.items() if k != "param_names"} for group in state_dict["param_groups"]],
    }


def walk_together(pairs, steps=10):
    """Takes steps with several (problem, optimizer) pairs, which must stay bitwise equal."""
    for _ in range(steps):
        for fit, optimizer in pairs:
            optimizer.step(fit.backward)
        for _, optimizer in pairs[1:]:
            assert_same(snapshot(pairs[0][1]), snapshot(optimizer))


@NAMED
def test_state_dict_deterministic(options, named):
    fit, optimizer = trained(options, 10, named[0])
    other_fit = twin(fit)
    other = build(other_fit, copy.deepcopy(options), named[1])
    given = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(given)
    # the loaded state_dict is not changed, then or later
    assert_equal(given, optimizer.state_dict())
    walk_together([(fit, optimizer), (other_fit, other)])
    assert_equal(without_names(optimizer.state_dict()), without_names(other.state_dict()))
    assert given["state"][0]["step"].item() == 10
    # a group that occurs twice looks the same as once
    other.param_groups.extend(other.param_groups)
    last = [without_names(o.state_dict())["param_groups"][-1] for o in (optimizer, other)]
    assert_equal(*last)


def test_load_state_dict_clones_tensor_state(options):
    """A ``state_dict`` loaded without copying: neither optimizer writes into the other's state."""
    fit, optimizer = trained(options)
    other = build(twin(fit), copy.deepcopy(options))
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(parameters(optimizer), parameters(other), strict=True):
        theirs = {value.untyped_storage().data_ptr() for value in other.state[q].values()}
        assert not theirs & {value.untyped_storage().data_ptr() for value in optimizer.state[p].values()}


@pytest.mark.parametrize("flag", INFO.not_og_supported_flags)
def test_can_load_older_state_dict(options, flag):
    """A state whose groups lack newer options: the defaults are used."""
    options = {name: value for name, value in options.items() if name != flag}
    fit, optimizer = trained(options)
    other_fit = twin(fit)
    other = build(other_fit, copy.deepcopy(options))
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        del group[flag]
    other.load_state_dict(older)
    walk_together([(fit, optimizer), (other_fit, other)])
    assert other.param_groups[0][flag] == INFO.optim_cls([parameter(1)]).param_groups[0][flag]


def test_can_load_older_state_dict_of_nothing_but_its_numbers(options):
    fit, optimizer = trained({})
    other_fit = twin(fit)
    other = build(other_fit, {})
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for flag in INFO.not_og_supported_flags:
            del group[flag]
    other.load_state_dict(older)
    walk_together([(fit, optimizer), (other_fit, other)])


@NAMED
def test_can_load_from_to_named_state_dict(options, named):
    fit, optimizer = trained(options, 3, named[0])
    other_fit = twin(fit)
    other = build(other_fit, copy.deepcopy(options), named[1])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk_together([(fit, optimizer), (other_fit, other)], 3)
    if any(named):
        assert other.state_dict()["param_groups"][0]["param_names"] == ["name0", "name1"]
    else:
        assert "param_names" not in other.state_dict()["param_groups"][0]


@pytest.mark.parametrize("named", [False, True], ids=["not named", "named"])
def test_save_load_equality_with_weights_only(options, named):
    fit, optimizer = trained(options, 3, named)
    file = saved(optimizer.state_dict())
    for weights_only in (True, False):
        file.seek(0)
        loaded = torch.load(file, weights_only=weights_only)
        assert_equal(loaded, optimizer.state_dict())
    # and it continues from there
    other_fit = twin(fit)
    other = build(other_fit, copy.deepcopy(options), named)
    other.load_state_dict(loaded)
    walk_together([(fit, optimizer), (other_fit, other)], 3)


def test_load_nontensor_step(options):
    """A step that is a number, as in old checkpoints, becomes a tensor again."""
    fit, optimizer = trained(options)
    other_fit = twin(fit)
    other = build(other_fit, copy.deepcopy(options))
    older = copy.deepcopy(optimizer.state_dict())
    for state in older["state"].values():
        state["step"] = int(state["step"].item())
    other.load_state_dict(older)
    walk_together([(fit, optimizer), (other_fit, other)], 3)


def test_cpu_load_state_dict(options):
    """The state of a parameter on another device, moved to the CPU with ``map_location``, can be loaded on the CPU."""
    fit, optimizer = trained(options)
    loaded = torch.load(saved(optimizer.state_dict()), map_location="cpu", weights_only=True)
    loaded["param_groups"][0]["capturable"] = False
    other_fit = twin(fit)
    other = build(other_fit, copy.deepcopy(options))
    other.load_state_dict(loaded)
    assert {value.device.type for state in other.state.values() for value in state.values()} == {"cpu"}
    walk_together([(fit, optimizer), (other_fit, other)], 3)


def test_deepcopy_copies_all_public_attrs(options):
    _, optimizer = trained(options)
    copied = copy.deepcopy(optimizer)

    def public(o):
        return {name for name in vars(o) if not name.startswith("_")}

    assert public(copied) == public(optimizer)
    assert_equal(copied.state_dict(), optimizer.state_dict())
    assert type(copied) is type(optimizer)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_are_independent_and_go_on(options, way):
    """The whole optimizer is copied with its parameters; both continue independently with the same results."""
    fit, optimizer = trained(options)
    copied = way(optimizer)
    other_fit = twin(fit)
    other_fit.weight, other_fit.bias = parameters(copied)
    there = snapshot(optimizer)
    assert_same(there, snapshot(copied))
    for _ in range(3):
        copied.step(other_fit.backward)
    assert_same(there, snapshot(optimizer))
    for _ in range(3):
        optimizer.step(fit.backward)
    assert_same(snapshot(optimizer), snapshot(copied))
