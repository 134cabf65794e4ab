"""Use within training libraries: Stable-Baselines3's agents and their files, timm's factory and wrappers."""

import pytest

torch = pytest.importorskip("torch")

from puzzlelib_rmsprop.torch import RMSpropGraves  # noqa: E402
from tests.torch.theirs import one_thread  # noqa: E402, F401 (a fixture)

ARGUMENTS = {"alpha": 0.95, "eps": 0.01, "momentum": 0.9}


@pytest.fixture(params=["A2C", "DQN"])
def agent(request):
    """Returns an agent on CartPole after some training."""
    library = pytest.importorskip("stable_baselines3")
    more = {"learning_starts": 50, "train_freq": 2, "target_update_interval": 50} if request.param == "DQN" else {}
    kind = getattr(library, request.param)
    policy = {"optimizer_class": RMSpropGraves, "optimizer_kwargs": dict(ARGUMENTS), "net_arch": [16]}
    # a schedule: the library writes the learning rate into the groups while it trains
    made = kind(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=lambda left: 1e-3 * left,
        policy_kwargs=policy,
        seed=0,
        device="cpu",
        **more,
    )
    return made.learn(300)


def test_an_agent_trains(agent):
    optimizer = agent.policy.optimizer
    assert type(optimizer) is RMSpropGraves
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in ARGUMENTS} == ARGUMENTS
    assert group["lr"] < 2e-4  # at the end of the schedule
    trained = [p for p in group["params"] if p in optimizer.state]
    assert len(trained) >= 4
    steps = {optimizer.state[p]["step"].item() for p in trained}
    assert len(steps) == 1
    assert steps.pop() >= 50
    assert all(torch.isfinite(p).all() for p in group["params"])


def test_a_saved_agent_goes_on(agent, tmp_path):
    """The optimizer's state is saved in the agent's file and restored bit for bit."""
    agent.save(tmp_path / "agent.zip")
    loaded = type(agent).load(tmp_path / "agent.zip", env=agent.get_env(), device="cpu")
    first, second = agent.policy.optimizer, loaded.policy.optimizer
    assert type(second) is RMSpropGraves
    compared = 0
    for p, q in zip(first.param_groups[0]["params"], second.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
        if p in first.state:
            assert first.state[p].keys() == second.state[q].keys()
            assert all(torch.equal(value, second.state[q][key]) for key, value in first.state[p].items())
            compared += 1
    assert compared >= 4
    loaded.learn(60)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return pytest.importorskip("timm").create_model("test_efficientnet", num_classes=10)


def train(net, optimizer, steps=3):
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return sum(not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["rmspropgraves", "lookahead_rmspropgraves"])
def test_timm_makes_it_by_a_name(net, name):
    """Its factory takes only names; a class gets one in the registry, which timm does not export."""
    factory = pytest.importorskip("timm.optim._optim_factory")
    information = factory.OptimInfo(
        name="rmspropgraves",
        opt_class=RMSpropGraves,
        description="Graves' RMSProp",
        has_momentum=True,
        defaults={"alpha": 0.9, "centered": False, "initial_square_avg": 1.0},
    )
    factory.default_registry.register(information)
    try:
        made = factory.create_optimizer_v2(net, name, lr=0.01, weight_decay=1e-5, momentum=0.9, eps=1e-3)
    finally:
        del factory.default_registry._optimizers["rmspropgraves"]
    inner = getattr(made, "_base_optimizer", made)
    assert type(inner) is RMSpropGraves
    decays = [group["weight_decay"] for group in inner.param_groups]
    assert sorted(decays) == [0.0, 1e-5]
    assert (inner.defaults["eps"], inner.defaults["momentum"], inner.defaults["alpha"]) == (1e-3, 0.9, 0.9)
    assert train(net, made, steps=7) == len(list(net.parameters()))


def test_timm_schedules_it(net):
    """timm's schedulers write the learning rate of every group."""
    scheduler = pytest.importorskip("timm.scheduler")
    groups = pytest.importorskip("timm.optim").param_groups_weight_decay(net, 1e-5)
    optimizer = RMSpropGraves(groups, lr=0.01, alpha=0.9, eps=1e-3, centered=False, initial_square_avg=1.0)
    schedule = scheduler.StepLRScheduler(
        optimizer, decay_t=1, decay_rate=0.5, warmup_t=2, warmup_lr_init=1e-6, warmup_prefix=True
    )
    rates = []
    for epoch in range(5):
        schedule.step(epoch)
        rates.append({group["lr"] for group in optimizer.param_groups})
        changed = train(net, optimizer, steps=1)
        # the first rate is too small to change a parameter of 1
        assert epoch == 0 or changed == len(list(net.parameters()))
    assert all(len(each) == 1 for each in rates)
    assert rates[0] == {1e-6}
    assert rates[4] == {0.01 * 0.5**2}
