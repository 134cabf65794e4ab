"""DTensor parameters, as created by FSDP2: each process updates its part, bitwise equal to the whole net."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize("size", [1, 2])
def test_a_net_in_parts(size, tmp_path):
    command = [sys.executable, "-m", "tests.torch.sharded"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert "as the whole" in output
