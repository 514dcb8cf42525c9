"""The memory that is available: the machine's, or what the limits of containers leave of it."""

from pathlib import Path

import pytest

from numllama.engine.serve.memory import available_memory

MIB = 2**20


def machine(root, groups, cgroup, meminfo="MemTotal:  9000 kB\nMemAvailable:    8388608 kB\n"):
    """Write the files that a kernel shows below `root`; `groups` are texts by path."""
    for path, text in {"proc/meminfo": meminfo, "proc/self/cgroup": cgroup, **groups}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def version_2(folder, limit, used, inactive=0, active=0):
    stat = f"anon 5\nfile 7\nactive_file {active * MIB}\ninactive_file {inactive * MIB}\nworkingset_refault_file 9\n"
    limit = limit if limit == "max" else limit * MIB
    files = {"memory.max": f"{limit}\n", "memory.current": f"{used * MIB}\n", "memory.stat": stat}
    return {f"sys/fs/cgroup/{folder}{name}": text for name, text in files.items()}


def version_1(folder, limit, used, inactive=0):
    stat = f"cache 3\ninactive_file 1\ntotal_inactive_file {inactive * MIB}\ntotal_active_file 0\n"
    files = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{used * MIB}\n", "stat": stat}
    return {f"sys/fs/cgroup/memory/{folder}memory.{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    "groups, cgroup, expected",
    [
        ({}, "", 8192),
        (version_2("", 2048, 500), "0::/\n", 1548),
        (version_2("", 2048, 1500, inactive=700, active=300), "0::/\n", 1548),
        (version_2("", "max", 500), "0::/\n", 8192),
        (version_2("", 65536, 500), "0::/\n", 8192),
        (version_2("", 100, 200), "0::/\n", 0),
        (version_2("a.slice/b/", "max", 5) | version_2("a.slice/", 1000, 400), "0::/a.slice/b\n", 600),
        (version_2("", 2048, 500), "0::/docker/0123\n", 1548),
        (version_1("", 2048 * MIB, 500), "4:memory:/docker/0123\n3:cpu:/\n0::/\n", 1548),
        (version_1("a/", 2**63 - 4096, 5) | version_1("", 1024 * MIB, 524, inactive=24), "4:memory:/a\n", 524),
        (version_1("", 2**63 - 4096, 500), "8:hugetlb,memory:/\n", 8192),
    ],
    ids=[
        "none",
        "v2",
        "v2 with cached files",
        "no limit",
        "far",
        "over",
        "parent",
        "namespace",
        "v1",
        "v1 parent",
        "v1 no",
    ],
)
def test_the_least_limit_counts_and_cached_files_are_free(tmp_path, groups, cgroup, expected):
    assert available_memory(machine(tmp_path, groups, cgroup)) == expected * MIB


def test_a_machine_without_these_files_has_unknown_memory(tmp_path):
    assert available_memory(tmp_path) is None
    assert available_memory(machine(tmp_path, version_2("", 2048, 48), "0::/\n", meminfo="")) == 2000 * MIB


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_this_machine_has_memory():
    assert available_memory() > 50 * MIB
