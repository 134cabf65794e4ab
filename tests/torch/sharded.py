"""Run by the processes of test_sharded.py: a sharded net (FSDP2) with its optimizer on DTensors, and the whole net."""

import faulthandler
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from puzzlelib_rmsprop.torch import RMSpropGraves


def net():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))


def in_8_bits(mesh, folder):
    """Codes and scales are DTensors, sharded like the parameter; each part equals that of an optimizer of the part alone."""
    sharded = torch.nn.Sequential(torch.nn.Linear(50, 7), torch.nn.Linear(7, 130))
    fully_shard(sharded, mesh=mesh)
    alone = [torch.nn.Parameter(part.to_local().detach().clone()) for part in sharded.parameters()]
    options = {"lr": 1e-2, "state_dtype": torch.int8, "initial_square_avg": 1.0, "centered": False}
    first, second = RMSpropGraves(alone, **options), RMSpropGraves(sharded.parameters(), **options)
    for number in range(6):
        for param, part in zip(alone, sharded.parameters(), strict=True):
            whole = torch.sin(torch.arange(part.numel()) + float(number)).reshape(part.shape)
            part.grad = distribute_tensor(whole, mesh, part.placements)
            param.grad = part.grad.to_local().clone()
        first.step()
        second.step()
        if number == 2:  # through a checkpoint, also to floats and back
            for state_dtype in (torch.int8, None, torch.int8):
                again, given = RMSpropGraves(sharded.parameters()), second.state_dict()
                given["param_groups"][0]["state_dtype"] = state_dtype
                again.load_state_dict(given)
                second = again
    for param, part in zip(alone, sharded.parameters(), strict=True):
        assert torch.equal(param, part.to_local())
        for entity in ("grad_avg", "grad_var", "momentum_buffer", "scales"):
            own, theirs = first.state[param][entity], second.state[part][entity]
            assert isinstance(theirs, DTensor), entity
            # all processes have as many scales as the one with the largest part
            assert torch.equal(own, theirs.to_local()[: len(own)]), entity
        rows = -(-part.shape[0] // mesh.size())
        blocks = -(-rows * (part.numel() // part.shape[0]) // 64)
        assert second.state[part]["scales"].shape == (3 * (blocks + 1) * mesh.size(),)
    before, given = second.state_dict(), second.state_dict()
    for scales, text in (
        (before["state"][0]["scales"].full_tensor(), "'scales' must be"),
        (before["state"][0]["scales"] * 0, "its 'scales' are of a parameter that was sharded differently"),
    ):
        given["state"][0] = {**before["state"][0], "scales": scales}
        with pytest.raises(ValueError, match=f"parameter 0: {text}"):
            second.load_state_dict(given)
    # each process writes its own part of a file
    second.zero_grad()
    found = get_optimizer_state_dict(sharded, second)
    checkpoint.save(found, checkpoint_id=f"{folder}.dcp")
    fresh = RMSpropGraves(sharded.parameters(), **options)
    empty = get_optimizer_state_dict(sharded, fresh)
    checkpoint.load(empty, checkpoint_id=f"{folder}.dcp")
    set_optimizer_state_dict(sharded, fresh, empty)
    whole = get_optimizer_state_dict(sharded, second, options=StateDictOptions(full_state_dict=True))
    again = RMSpropGraves(sharded.parameters(), **options)
    set_optimizer_state_dict(sharded, again, whole, options=StateDictOptions(full_state_dict=True))
    for part in sharded.parameters():
        for entity in ("grad_avg", "grad_var", "momentum_buffer", "scales"):
            assert torch.equal(again.state[part][entity].to_local(), second.state[part][entity].to_local()), entity
            assert torch.equal(fresh.state[part][entity].to_local(), second.state[part][entity].to_local()), entity


def main(rank, size, file):
    faulthandler.enable()
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    whole, sharded = net(), net()
    fully_shard(sharded, mesh=mesh)
    options = {"lr": 1e-2, "weight_decay": 0.1, "initial_square_avg": 1.0}
    first, second = RMSpropGraves(whole.parameters(), **options), RMSpropGraves(sharded.parameters(), **options)
    for number in range(6):
        for param, part in zip(whole.parameters(), sharded.parameters(), strict=True):
            param.grad = torch.sin(torch.arange(param.numel()) + float(number)).reshape(param.shape)
            part.grad = distribute_tensor(param.grad.clone(), mesh, part.placements)
        first.step()
        second.step()
        if number == 2:  # through a checkpoint
            again = RMSpropGraves(sharded.parameters())
            again.load_state_dict(second.state_dict())
            second = again
    for param, part in zip(whole.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(param, part.full_tensor())
        for entity in ("grad_avg", "grad_var", "momentum_buffer"):
            assert isinstance(second.state[part][entity], DTensor), entity
            assert second.state[part][entity].to_local().shape == part.to_local().shape
            assert torch.equal(first.state[param][entity], second.state[part][entity].full_tensor()), entity
    in_8_bits(mesh, file)
    # a gradient with other placements is refused
    other = torch.nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, part.placements))
    other.grad = distribute_tensor(torch.ones(4, 4), mesh, [Replicate()])
    optimizer = RMSpropGraves([other])
    with pytest.raises(ValueError, match=r"parameter 0: its gradient must have the parameter's placements, .*redistribute"):
        optimizer.step()
    assert not optimizer.state
    dist.barrier()
    dist.destroy_process_group()
    print("as the whole", flush=True)
    # about one in fifteen aborts in Python's finalization, while gloo's threads still run (pytorch#190489)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
