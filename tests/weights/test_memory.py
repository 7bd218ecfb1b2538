"""Memory that a control group allows, in trees of files such as Linux shows."""

from pathlib import Path

from llmforge.weights.memory import free_memory, total_memory

GIB = 1 << 30


def lay_out(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_tightest_group_of_version_2_counts_and_its_caches_are_free(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
        "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
        "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max\n",
        "sys/fs/cgroup/slurm/job_7/step_0/memory.current": "1073741824\n",
        "sys/fs/cgroup/slurm/job_7/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/slurm/job_7/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/slurm/job_7/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
    }
    lay_out(tmp_path, files)
    assert total_memory(tmp_path) == 2 * GIB
    assert free_memory(tmp_path) == 3 * GIB // 2


def test_version_1_and_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemAvailable: 8388608 kB\n",
        "proc/self/cgroup": "4:cpu,cpuacct:/\n7:memory:/docker/0123\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB // 4}\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 4096\n",
    }
    lay_out(tmp_path, files)
    assert total_memory(tmp_path) == GIB
    assert free_memory(tmp_path) == GIB // 4 + 4096


def test_without_limits_it_is_the_machine(tmp_path: Path) -> None:
    lay_out(tmp_path, {"proc/meminfo": "MemAvailable: 1024 kB\n", "proc/self/cgroup": "0::/\n"})
    assert free_memory(tmp_path) == 1 << 20
    assert total_memory(tmp_path) == total_memory(tmp_path / "nowhere")
    assert 0 < free_memory() <= total_memory()
