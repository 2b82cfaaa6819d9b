"""Runtime: what is chosen, why, and what the environment may change. Machines are described, not required."""

import dataclasses
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lowbit import machine as machine_module
from lowbit import ops, runtime
from lowbit.machine import Cpus, Gpu, HugePages, Machine, Memory
from lowbit.runtime import GPU_ENVIRONMENT, Runtime, default_threads


def cpus(count=4, cores=None, performance=None, quota=None, tiles=False):
    cores = tuple(frozenset({i}) for i in range(count)) if cores is None else cores
    return Cpus(frozenset(range(count)), cores, performance, quota, tiles)


def machine(*, gpus=(), system="linux", **options):
    return Machine(system, cpus(**options), Memory(None, None, None, None), HugePages(*[None] * 5), tuple(gpus))


ARC = Gpu("arc", 0x56A0, "0000:03:00.0", "xe")
IGPU = Gpu("igpu", 0x7D55, "0000:00:02.0", "i915")


@pytest.fixture
def xpu_machine(monkeypatch):
    """A PyTorch that sees two xpu, and a lowbit that can execute there."""
    torch = types.ModuleType("torch")
    torch.__version__ = "9.9+xpu"
    torch.__spec__ = types.SimpleNamespace(name="torch")
    torch.xpu = types.SimpleNamespace(_is_compiled=lambda: True, device_count=lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(runtime, "RUNNABLE", frozenset({"cpu", "xpu"}))
    return torch


# ---- threads ----


@pytest.mark.parametrize(
    ("described", "expected", "words"),
    [
        (cpus(4), 4, ["4 physical cores"]),
        (cpus(4, cores=(frozenset({0, 2}), frozenset({1, 3}))), 2, ["4 CPUs allowed", "2 physical cores"]),
        (cpus(4, performance=frozenset({0, 1})), 2, ["2 of them on performance cores"]),
        (cpus(2, performance=frozenset({8, 9})), 2, ["2 CPUs allowed"]),  # the mask holds efficient cores only
        (cpus(8, quota=1.5), 2, ["control group", "1.5"]),
        (cpus(8, quota=0.2), 1, ["0.2"]),
        (cpus(8, quota=64), 8, ["8 physical cores"]),
    ],
)
def test_default_threads(described, expected, words):
    count, reason = default_threads(described)
    assert count == expected
    for word in words:
        assert word in reason


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (0.01, 1), (1, 1), (1.01, 2), (1.5, 2), (2.0, 2), (7.2, 8), (8, 8), (100, 8)]
)
def test_quota_is_rounded_up(quota, expected):
    assert cpus(quota=quota).within_quota(8) == expected


def test_default_threads_where_the_machine_does_not_tell():
    count, reason = default_threads(Cpus(frozenset({0, 1, 2}), None, None, None))
    assert count == 3
    assert "does not tell" in reason


def test_threads_argument_beats_variable_beats_default():
    environment = {"LOWBIT_THREADS": "3"}
    assert Runtime(threads=7).resolve(machine(), environment).threads == 7
    assert Runtime().resolve(machine(), environment).threads == 3
    assert Runtime().resolve(machine(), {}).threads == 4


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_bad_threads_variable_is_an_error(value):
    with pytest.raises(ValueError, match="LOWBIT_THREADS"):
        Runtime().resolve(machine(), {"LOWBIT_THREADS": value})


def test_a_reason_for_every_choice():
    resolved = Runtime(threads=2).resolve(machine(), {})
    assert {d.name for d in resolved.decisions} >= {"device", "threads", "tier", "compute", "kv_dtype"}
    assert all(d.reason for d in resolved.decisions)
    assert next(d for d in resolved.decisions if d.name == "threads").reason == "asked for"


# ---- tier ----


def with_tiers(monkeypatch, *names):
    monkeypatch.setattr(ops, "tiers", lambda: list(names))


@pytest.mark.parametrize(
    ("wish", "expected", "words"),
    [
        ("", "avx512", "best"),
        ("avx2", "avx2", "lowered from avx512"),
        ("AVX2", "avx2", "lowered"),
        ("scalar", "scalar", "lowered"),
        ("avx512", "avx512", "agrees"),
        ("amx", "avx512", "ignored"),
    ],
)
def test_isa_variable_can_only_lower(monkeypatch, wish, expected, words):
    with_tiers(monkeypatch, "scalar", "avx2", "avx512")
    resolved = Runtime().resolve(machine(), {"LOWBIT_ISA": wish})
    assert resolved.tier == expected
    assert words in next(d.reason for d in resolved.decisions if d.name == "tier")


def test_isa_variable_lowers_an_explicit_tier(monkeypatch):
    with_tiers(monkeypatch, "scalar", "avx2", "avx512")
    assert Runtime(tier="avx512").resolve(machine(), {"LOWBIT_ISA": "avx2"}).tier == "avx2"
    assert Runtime(tier="avx2").resolve(machine(), {"LOWBIT_ISA": "avx512"}).tier == "avx2"


def test_unknown_isa_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"LOWBIT_ISA is 'avx-512', no tier; did you mean 'avx512'\?"):
        Runtime().resolve(machine(), {"LOWBIT_ISA": "avx-512"})


def test_a_tier_this_cpu_lacks_is_an_error(monkeypatch):
    with_tiers(monkeypatch, "scalar", "avx2")
    with pytest.raises(ValueError, match="this CPU has scalar, avx2"):
        Runtime(tier="avx512").resolve(machine(), {})


# ---- fields ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "unknown device 'cuda'"),
        ({"device": "xpux"}, "did you mean 'xpu'"),
        ({"device": "cpu:0"}, "unknown device"),
        ({"device": "xpu:"}, "unknown device"),
        ({"tier": "avx3"}, "unknown tier"),
        ({"compute": "int4"}, "did you mean 'int8'"),
        ({"kv_dtype": "float16"}, "int16, fp16, bf16, int8, fp32"),
        ({"threads": 0}, "threads must be"),
        ({"threads": True}, "threads must be"),
        ({"context": -5}, "context must be"),
    ],
)
def test_bad_fields_name_the_choices(options, words):
    with pytest.raises(ValueError, match="(?s)" + words.replace("(", r"\(")):
        Runtime(**options)


def test_runtime_is_frozen_and_resolved_resolves_to_itself():
    asked = Runtime()
    with pytest.raises(dataclasses.FrozenInstanceError):
        asked.threads = 3
    resolved = asked.resolve(machine(), {})
    assert resolved.resolve() is resolved
    assert resolved.replace(context=64).context == 64


# ---- devices ----


def test_auto_never_picks_what_cannot_run():
    resolved = Runtime(device="auto").resolve(machine(gpus=[ARC]), environment := {})
    assert resolved.device == "cpu"
    reason = resolved.decisions[0].reason
    assert "arc" in reason
    assert "CPU only" in reason
    assert environment == {}


def test_xpu_where_there_is_none_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="cannot be used") as caught:
        Runtime(device="xpu").resolve(machine(), {})
    text = str(caught.value)
    for words in ("no Intel GPU found", "PyTorch is not installed", "executes on the CPU only", "device='cpu'"):
        assert words in text


def test_xpu_with_a_torch_without_xpu(xpu_machine):
    xpu_machine.xpu._is_compiled = lambda: False
    with pytest.raises(ValueError, match="built without xpu"):
        Runtime(device="xpu").resolve(machine(gpus=[ARC]), {})


def test_xpu_index_beyond_the_last(xpu_machine):
    with pytest.raises(ValueError, match="there is no xpu:2: PyTorch sees 2"):
        Runtime(device="xpu:2").resolve(machine(gpus=[ARC]), {})


def test_gpu_without_driver(xpu_machine):
    xpu_machine.xpu.device_count = lambda: 0
    with pytest.raises(ValueError, match="no kernel driver"):
        Runtime(device="xpu").resolve(machine(gpus=[dataclasses.replace(ARC, driver=None)]), {})


def test_a_gpu_that_only_pytorch_sees_is_enough(xpu_machine):
    assert Runtime(device="xpu").resolve(machine(gpus=[]), {}).device == "xpu:0"


def test_xpu_is_chosen_where_it_can_run(xpu_machine):
    for asked, expected in (("auto", "xpu:0"), ("xpu", "xpu:0"), ("xpu:1", "xpu:1")):
        assert Runtime(device=asked).resolve(machine(gpus=[ARC, ARC]), {}).device == expected


def test_gpu_environment_by_kind_and_system(xpu_machine):
    def chosen(gpu, system):
        Runtime(device="xpu").resolve(machine(gpus=[gpu], system=system), environment := {})
        return environment

    # the two cells of the predecessors' notebook
    assert chosen(IGPU, "win32") == {"SYCL_CACHE_PERSISTENT": "1", "BIGDL_LLM_XMX_DISABLED": "1"}
    assert chosen(ARC, "win32") == {"SYCL_CACHE_PERSISTENT": "1"}
    immediate = "SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS"
    assert chosen(IGPU, "linux") == {"SYCL_CACHE_PERSISTENT": "1"}
    assert chosen(ARC, "linux") == {"SYCL_CACHE_PERSISTENT": "1", immediate: "1", "USE_XETLA": "OFF"}
    maximum = Gpu("max", 0x0BD5, "0000:29:00.0", "i915")
    assert chosen(maximum, "linux") == {"SYCL_CACHE_PERSISTENT": "1", immediate: "1", "ENABLE_SDP_FUSION": "1"}


def test_gpu_environment_leaves_the_users_value_alone(xpu_machine):
    environment = {"SYCL_CACHE_PERSISTENT": "0"}
    resolved = Runtime(device="xpu").resolve(machine(gpus=[IGPU]), environment)
    assert environment == {"SYCL_CACHE_PERSISTENT": "0"}
    decision = next(d for d in resolved.decisions if d.name == "SYCL_CACHE_PERSISTENT")
    assert (decision.value, decision.reason) == ("0", "set by the user, left alone")


def test_gpu_environment_says_when_it_may_come_too_late(xpu_machine):
    resolved = Runtime(device="xpu").resolve(machine(gpus=[IGPU]), {})
    assert "too late" in next(d.reason for d in resolved.decisions if d.name == "SYCL_CACHE_PERSISTENT")


def test_a_gpu_of_unknown_kind_gets_what_holds_for_all(xpu_machine):
    Runtime(device="xpu").resolve(machine(gpus=[], system="win32"), environment := {})
    assert environment == {"SYCL_CACHE_PERSISTENT": "1"}


def test_cpu_sets_nothing(xpu_machine):
    Runtime(device="cpu").resolve(machine(gpus=[ARC]), environment := {})
    assert environment == {}


def test_every_setting_has_a_reason_and_known_kinds():
    for setting in GPU_ENVIRONMENT:
        assert setting.reason
        assert setting.kinds <= {"igpu", "arc", "flex", "max"}
        assert setting.systems <= {"linux", "win32"}


# ---- pools ----


def test_pools_are_shared_per_size():
    assert runtime.pool(2) is runtime.pool(2)
    assert runtime.pool(1) is not runtime.pool(2)
    assert runtime.pool(2).size == 2
    assert Runtime(threads=2).resolve(machine(), {}).pool is runtime.pool(2)
    with pytest.raises(ValueError, match="at least 1"):
        runtime.pool(0)


def test_first_users_at_once_share_a_pool():
    start = threading.Barrier(8)

    def first(threads):
        start.wait()
        return runtime.pool(threads)

    with ThreadPoolExecutor(8) as callers:
        for threads in range(20, 30):
            assert len(set(map(id, callers.map(first, [threads] * 8)))) == 1


# ---- reading /proc and /sys ----


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"), [(None, set()), ("", set()), ("0", {0}), ("0-2,5,8-9\n", {0, 1, 2, 5, 8, 9})]
)
def test_cpu_lists(text, expected):
    assert machine_module.parse_cpu_list(text) == expected


def test_hyper_threads_and_hybrid_parts(tmp_path):
    topology = "sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
    root = write(
        tmp_path,
        {
            **{topology.format(i): "0-1" for i in (0, 1)},
            **{topology.format(i): str(i) for i in (2, 3)},
            "sys/devices/cpu_core/cpus": "0-1",
            "sys/devices/cpu_atom/cpus": "2-3",
        },
    )
    read = machine_module.read_cpus(root, frozenset(range(4)))
    assert read.cores == (frozenset({0, 1}), frozenset({2}), frozenset({3}))
    assert read.performance == {0, 1}
    assert default_threads(read)[0] == 1
    half = machine_module.read_cpus(root, frozenset({1, 2, 3}))  # affinity cuts a core in two
    assert half.cores == (frozenset({1}), frozenset({2}), frozenset({3}))


def test_a_machine_without_topology(tmp_path):
    read = machine_module.read_cpus(tmp_path, frozenset({0, 1}))
    assert read.cores is None
    assert read.performance is None
    assert read.quota is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        # the limit sits on a parent of the process's own group
        (
            {
                "proc/self/cgroup": "0::/user.slice/job\n",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
                "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000",
            },
            3.0,
        ),
        # a container shows the host's path, which does not exist inside
        ({"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
        # the tightest of nested limits binds
        (
            {
                "proc/self/cgroup": "0::/a/b/c\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "120000 50000",
                "sys/fs/cgroup/a/b/c/cpu.max": "600000 100000",
            },
            2.4,
        ),
        (
            {
                "proc/self/cgroup": "5:cpuacct,cpu:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n",
                "sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/docker/cpu.cfs_period_us": "50000",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "350000",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        # a process in no group of the hierarchy that has limits
        ({"proc/self/cgroup": "1:name=systemd:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "not a limit"}, None),
    ],
)
def test_cpu_quota(tmp_path, files, expected):
    assert machine_module.read_cpus(write(tmp_path, files), frozenset({0})).quota == expected


def test_memory_and_huge_pages(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:  1000 kB\nMemAvailable:  600 kB\n",
            "proc/self/status": "Name:\tx\nVmRSS:\t  50 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "512000",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
            "sys/kernel/mm/transparent_hugepage/defrag": "always defer [defer+madvise] madvise never",
            "sys/kernel/mm/transparent_hugepage/hpage_pmd_size": "2097152",
            "proc/self/smaps_rollup": "Rss: 5 kB\nAnonHugePages:   2048 kB\nFilePmdMapped:      0 kB\n",
        },
    )
    assert machine_module.read_memory(root) == Memory(1024000, 614400, 512000, 51200)
    assert machine_module.read_huge_pages(root) == HugePages("madvise", "defer+madvise", 2097152, 2048 * 1024, 0)


def test_machine_that_tells_nothing(tmp_path):
    assert machine_module.read_memory(tmp_path) == Memory(None, None, None, None)
    assert machine_module.read_huge_pages(tmp_path) == HugePages(None, None, None, None, None)
    assert machine_module.read_gpus(tmp_path) == ()


def test_gpus_by_pci_id_and_place(tmp_path):
    found = {  # card: (address, vendor, device id, driver, kind or None where it is not ours)
        "card0": ("0000:00:02.0", "0x8086", "0x7d55", "i915", "igpu"),
        "card1": ("0000:03:00.0", "0x8086", "0x56a0", "xe", "arc"),
        "card2": ("0000:04:00.0", "0x8086", "0x56c1", None, "flex"),
        "card3": ("0000:29:00.0", "0x8086", "0x0bd5", "i915", "max"),
        "card4": ("0000:05:00.0", "0x8086", "0xe20b", "xe", "arc"),  # Battlemage: discrete, in no range
        "card5": ("0000:01:00.0", "0x10de", "0x2204", "nvidia", None),
    }
    for card, (address, vendor, device, driver, _) in found.items():
        place = tmp_path / "sys/devices/pci" / address
        write(place, {"vendor": vendor, "device": device})
        if driver:
            (tmp_path / "sys/bus/drivers" / driver).mkdir(parents=True, exist_ok=True)
            (place / "driver").symlink_to(tmp_path / "sys/bus/drivers" / driver)
        (tmp_path / "sys/class/drm" / card).mkdir(parents=True)
        (tmp_path / "sys/class/drm" / card / "device").symlink_to(place)
    (tmp_path / "sys/class/drm/card0-HDMI-A-1").mkdir()
    gpus = machine_module.read_gpus(tmp_path)
    assert [(g.kind, g.driver) for g in gpus] == [(k, d) for *_, d, k in found.values() if k]
    assert gpus[0].address == "0000:00:02.0"
    assert gpus[0].pci_id == 0x7D55


def test_this_machine_can_be_read():
    read = machine_module.read_machine()
    assert read.cpus.allowed
    assert read.system == sys.platform


def test_the_default_is_the_highest_tier_and_the_variable_lowers_it(monkeypatch):
    with_tiers(monkeypatch, "scalar", "avx2", "avx512", "amx")
    assert ops.default_tier() == "amx"
    chosen = Runtime().resolve(machine(), {})
    assert chosen.tier == "amx"
    assert next(d.reason for d in chosen.decisions if d.name == "tier") == "best this CPU has"
    assert Runtime().resolve(machine(), {"LOWBIT_ISA": "avx512"}).tier == "avx512"
    assert Runtime(tier="avx512").resolve(machine(), {}).tier == "avx512"
    assert Runtime().resolve(machine(tiles=True), {}).decisions == chosen.decisions
    with_tiers(monkeypatch, "scalar", "avx2")
    assert ops.default_tier() == "avx2"


def test_tiles_that_the_operating_system_refuses_are_told(monkeypatch, tmp_path):
    """A sandbox may refuse arch_prctl: the CPU and /proc/cpuinfo have AMX, the process has not."""
    with_tiers(monkeypatch, "scalar", "avx2", "avx512")
    cpuinfo = tmp_path / "proc" / "cpuinfo"
    cpuinfo.parent.mkdir()
    reasons = {}
    for flags in ("fpu avx512f", "fpu avx512f amx_tile amx_int8"):
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nprocessor\t: 1\n")
        here = dataclasses.replace(machine(), cpus=machine_module.read_cpus(tmp_path, frozenset({0, 1})))
        reasons[flags] = next(d.reason for d in Runtime().resolve(here, {}).decisions if d.name == "tier")
    told = "best this CPU has; it has AMX too, whose tiles the operating system refuses to this process"
    assert list(reasons.values()) == ["best this CPU has", told]
    with pytest.raises(ValueError, match="has scalar, avx2, avx512; it has AMX too, whose tiles the operating system"):
        Runtime(tier="amx").resolve(here, {})
