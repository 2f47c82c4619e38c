"""How many cores a process may use, also in a container."""

from __future__ import annotations

import pytest

from classifier.cores import available_cores, paid_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    """A machine with eight cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000\n"}, 8),
    ],
    ids=["none", "v2", "less than one", "v2 without", "above the machine", "v1", "v1 without", "half"],
)
def test_a_containers_limit_counts(tmp_path, files, cores):
    """The cores are those of the affinity, or fewer where a container's limit, of either kind, pays for fewer."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize("limit", ["", "many", "1 2 3", "100000 0", "\x00 1"])
def test_what_says_no_limit_limits_nothing(limit):
    """A text that is no limit is taken for none."""
    assert paid_cores(limit) is None
