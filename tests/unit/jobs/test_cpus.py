import os
from pathlib import Path

from anneal_jobs.cpus import count_cpus


def test_without_a_limit_all_processors_count(tmp_path: Path) -> None:
    assert count_cpus(cgroup_root=tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert count_cpus(cgroup_root=tmp_path) == len(os.sched_getaffinity(0))


def test_a_limit_is_rounded_up_and_never_below_one(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert count_cpus(cgroup_root=tmp_path) == 1


def test_the_older_cgroups_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert count_cpus(cgroup_root=tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert count_cpus(cgroup_root=tmp_path) == len(os.sched_getaffinity(0))
