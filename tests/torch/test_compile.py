"""``torch.compile`` around a training: the step is one operation of the graph, and reads the options when it runs."""

import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Skipping serialization"
)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def training(**options):
    """Returns a net, its optimizer, and a function that takes a step."""
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    data, target = torch.randn(20, 6), torch.randint(0, 3, (20,))
    optimizer = RMSpropGraves(net.parameters(), **{"lr": 1e-2, **options})

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(data), target)
        loss.backward()
        optimizer.step()

    return net, optimizer, step


def states(optimizer):
    return [value for own in optimizer.state.values() for value in own.values()]


@pytest.mark.parametrize("state_dtype", [None, torch.int8], ids=str)
@pytest.mark.parametrize("by", ["eager", "aot_eager", "inductor"])
def test_a_compiled_step_gives_the_same_bits(by, state_dtype):
    """fullgraph=True allows no graph break. Both trainings get the same gradients from outside."""
    params = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (5, 70)]
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    options = {"lr": 1e-2, "weight_decay": 0.1, "state_dtype": state_dtype}
    compiled, eager = RMSpropGraves(params, **options), RMSpropGraves(twins, **options)
    step = torch.compile(lambda: compiled.step(), fullgraph=True, backend=by)
    for number in range(5):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.sin(torch.arange(param.numel()) + number)
            twin.grad = param.grad.clone()
        step()
        eager.step()
    for first, second in zip([*params, *states(compiled)], [*twins, *states(eager)], strict=True):
        assert torch.equal(first, second)
    assert compiled.state[params[0]]["step"] == 5


def test_options_are_read_when_the_graph_runs():
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = RMSpropGraves([param], lr=1.0, momentum=0.0)
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    param.grad = torch.ones(4)
    for _ in range(3):
        step()
    for number in range(5):
        before = param.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.0 if number % 2 else 0.5 / (number + 1)
        step()
        assert torch.equal(before, param) == bool(number % 2)


def test_a_whole_training_under_compile():
    net, optimizer, step = training()
    twin, other, eager = training()
    compiled = torch.compile(step, backend="aot_eager")
    for _ in range(8):
        compiled()
        eager()
    for first, second in zip([*net.parameters(), *states(optimizer)], [*twin.parameters(), *states(other)], strict=True):
        assert torch.equal(first, second)


def test_a_parameter_without_a_gradient():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = RMSpropGraves(params, lr=0.1)
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for last in (0, 2, 1, 0):
        for number, param in enumerate(params):
            param.grad = None if number == last else torch.ones(3)
        before = [param.detach().clone() for param in params]
        step()
        assert [torch.equal(a, b) for a, b in zip(before, params, strict=True)] == [n == last for n in range(3)]
    assert [int(optimizer.state[param]["step"]) for param in params] == [2, 3, 3]
