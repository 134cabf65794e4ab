"""The default number of threads of an update: limited by the affinity and by the CPU quotas of control groups."""

import os
import subprocess
import sys

import pytest

from puzzlelib_rmsprop import config

MANY = set(range(64))


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: MANY, raising=False)


def tree(folder, cgroup, **files):
    """Creates a file system with these control groups; ``__`` in a name stands for a slash."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(folder)


V1 = "12:memory:/m\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu_max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "250000 100000\n"}, 3),  # rounded up
        ("0::/\n", {"cpu_max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "9900000 100000\n"}, 64),  # more than the affinity allows
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "300000 100000\n"}, 3),  # the quota of a parent group
        ("0::/a/b\n", {"a__b__cpu_max": "500000 100000\n", "a__cpu_max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a__b__cpu_max": "300000 100000\n", "a__cpu_max": "500000 100000\n"}, 3),
        ("0::/a/b\n", {"cpu_max": "400000 100000\n"}, 4),  # the root of a container, and a path that exists only on the host
        ("0::/a:b\n", {"a:b__cpu_max": "400000 100000\n"}, 4),
        ("0::/../x\n", {"cpu_max": "400000 100000\n"}, 4),
        (V1, {"cpu__docker__abc__cpu_cfs_quota_us": "150000\n", "cpu__docker__abc__cpu_cfs_period_us": "50000\n"}, 3),
        (V1, {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}, 64),
        (V1, {"cpu,cpuacct__cpu_cfs_quota_us": "100000\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"}, 1),
        (V1 + "0::/\n", {"cpu__cpu_cfs_quota_us": "200000\n", "cpu__cpu_cfs_period_us": "100000\n"}, 2),  # both versions
        ("0::/\n", {"cpu_max": "nonsense"}, 64),
        ("0::/\n", {"cpu_max": "1 0"}, 64),
        ("nonsense", {"cpu_max": "200000 100000"}, 64),
        ("0::/\n", {}, 64),
    ],
)
def test_quota(tmp_path, cgroup, files, cores):
    assert config.usable_cores(tree(tmp_path, cgroup, **files)) == cores


def test_where_nothing_is_told(tmp_path):
    assert config.usable_cores(str(tmp_path)) == 64


def test_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert config.usable_cores(tree(tmp_path, "0::/\n", cpu_max="200000 100000\n")) == 1


def test_no_affinity_to_ask_for(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert config.usable_cores(str(tmp_path)) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert config.usable_cores(str(tmp_path)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has an affinity to set")
def test_the_default():
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from puzzlelib_rmsprop import Config
print(Config.numThreads)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done.stderr
