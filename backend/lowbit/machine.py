"""What the machine says about itself: CPUs, memory, huge pages, Intel GPUs.

Owns reading /proc and /sys. Decides nothing (that is runtime.py) and reads no environment variable. Every reader
takes the root of the file system, so that tests can describe machines they do not run on; whatever a machine does not
tell is None.
"""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

INTEL_VENDOR = 0x8086


def _text(path: Path) -> str | None:
    """Returns a file's stripped text, or None where this machine has no such file or refuses to show it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _integer(path: Path, base: int = 10) -> int | None:
    """Returns the number a file holds, or None (absent, or a word such as "max")."""
    text = _text(path)
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


def parse_cpu_list(text: str | None) -> frozenset[int]:
    """Returns the CPU numbers of a kernel list such as "0-3,8,10-11"; empty for None or an empty list."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


@dataclass(frozen=True)
class Cpus:
    """The CPUs this process may use and how they group into cores."""

    allowed: frozenset[int]  # affinity mask
    cores: tuple[frozenset[int], ...] | None  # allowed CPUs by physical core; None: the machine does not tell
    performance: frozenset[int] | None  # CPUs of performance cores on a hybrid part; None: not a hybrid part
    quota: float | None  # CPUs' worth of time the control group allows; None: unlimited
    tiles: bool = False  # Linux lists AMX's int8 tiles among what the CPU has, which it may still refuse a process

    def within_quota(self, count: int) -> int:
        """Returns how many of `count` threads the control group's quota can keep busy: the quota rounded up.

        In a quota of 1.5 CPUs two threads rest a quarter of the time; one would leave a third of the quota unused.
        """
        return count if self.quota is None else max(1, min(count, math.ceil(self.quota)))


def read_cpus(root: Path = Path("/"), allowed: frozenset[int] | None = None) -> Cpus:
    """Returns the CPUs of this process. `allowed` replaces the affinity mask (for tests)."""
    if allowed is None:
        if hasattr(os, "sched_getaffinity"):
            allowed = frozenset(os.sched_getaffinity(0))
        else:
            allowed = frozenset(range(os.cpu_count() or 1))
    cores: set[frozenset[int]] = set()
    told = True
    for cpu in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = parse_cpu_list(_text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list"))
        told = told and cpu in siblings
        cores.add(siblings & allowed)
    # Linux registers one performance-counter device per core type on hybrid parts, each with its CPU list.
    performance = parse_cpu_list(_text(root / "sys/devices/cpu_core/cpus"))
    efficient = parse_cpu_list(_text(root / "sys/devices/cpu_atom/cpus"))
    return Cpus(
        allowed=allowed,
        cores=tuple(sorted(cores, key=min)) if told else None,
        performance=performance if performance and efficient else None,
        quota=_cpu_quota(root),
        tiles="amx_int8" in _cpu_flags(root),
    )


def _cpu_flags(root: Path) -> list[str]:
    """Returns the features Linux lists of the first CPU. The rest of the file, a page for each CPU, is not read."""
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return []


def _control_group(root: Path, controller: str) -> Path | None:
    """Returns this process's group in a hierarchy ("" is version 2) as a path below its top; None: it has none."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return Path(path.lstrip("/"))
    return None


def _limits(root: Path, controller: str, top: str) -> list[Path]:
    """Returns the folders whose limits bind this process, from its own group up to the top of the hierarchy."""
    group = _control_group(root, controller)
    base = root / "sys/fs/cgroup" / top
    if group is None:
        return []
    # Inside a container the path may be the host's and not exist here; the top then holds the container's limits.
    return [base / parent for parent in (group, *group.parents) if (base / parent).is_dir()]


def _cpu_quota(root: Path) -> float | None:
    quotas = []
    for folder in _limits(root, "", ""):
        quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    for folder in _limits(root, "cpu", "cpu"):
        old_quota, old_period = _integer(folder / "cpu.cfs_quota_us"), _integer(folder / "cpu.cfs_period_us")
        if old_quota and old_period and old_quota > 0:
            quotas.append(old_quota / old_period)
    return min(quotas) if quotas else None


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, and what this process holds. None: the machine does not tell."""

    total: int | None
    available: int | None
    limit: int | None  # of the control group
    resident: int | None  # of this process


def _kilobytes(text: str | None) -> dict[str, int]:
    """Returns the "Name:  123 kB" lines of a /proc file as bytes."""
    pairs = re.findall(r"^(\w+):\s+(\d+) kB", text or "", re.MULTILINE)
    return {name: int(value) * 1024 for name, value in pairs}


def read_memory(root: Path = Path("/")) -> Memory:
    """Returns the machine's memory in bytes and this process's share of it."""
    machine = _kilobytes(_text(root / "proc/meminfo"))
    process = _kilobytes(_text(root / "proc/self/status"))
    limits = [_integer(folder / "memory.max") for folder in _limits(root, "", "")]
    limits += [_integer(folder / "memory.limit_in_bytes") for folder in _limits(root, "memory", "memory")]
    total = machine.get("MemTotal")
    # An unlimited version 1 group reports a number near 2**63.
    bounds = [limit for limit in limits if limit is not None and (total is None or limit < total)]
    return Memory(total, machine.get("MemAvailable"), min(bounds, default=None), process.get("VmRSS"))


@dataclass(frozen=True)
class HugePages:
    """State of 2 MiB pages. Weights in 4 KiB pages stream 10 to 45 % slower (measured, int4 product)."""

    mode: str | None  # transparent huge pages: "always", "madvise" or "never"
    defrag: str | None
    page_bytes: int | None
    process_anonymous: int | None  # bytes of this process's anonymous memory in huge pages
    process_file: int | None  # bytes of its file mappings in huge pages


def read_huge_pages(root: Path = Path("/")) -> HugePages:
    """Returns the huge-page settings of the kernel and how much of this process's memory lies in huge pages."""
    folder = root / "sys/kernel/mm/transparent_hugepage"
    maps = _kilobytes(_text(root / "proc/self/smaps_rollup"))

    def chosen(name: str) -> str | None:
        match = re.search(r"\[(\w+(?:\+\w+)?)\]", _text(folder / name) or "")
        return match.group(1) if match else None

    return HugePages(
        mode=chosen("enabled"),
        defrag=chosen("defrag"),
        page_bytes=_integer(folder / "hpage_pmd_size"),
        process_anonymous=maps.get("AnonHugePages"),
        process_file=maps.get("FilePmdMapped"),
    )


@dataclass(frozen=True)
class Gpu:
    """An Intel GPU the kernel knows."""

    kind: str  # "igpu", "arc", "flex" or "max"
    pci_id: int
    address: str  # PCI address
    driver: str | None  # None: no kernel driver bound


# PCI device ids (Linux: include/drm/intel/pciids.h) of the discrete kinds; a discrete GPU of no range counts as Arc.
_PCI_KINDS = (
    ("arc", 0x5690, 0x56BF),
    ("flex", 0x56C0, 0x56C2),
    ("max", 0x0B69, 0x0B6E),
    ("max", 0x0BD0, 0x0BE5),
)
_INTEGRATED_ADDRESS = "0000:00:02.0"  # where every Intel integrated GPU sits


def read_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Returns the Intel GPUs that /sys/class/drm lists, in the order of their cards. Loads no driver library."""
    gpus = []
    for card in sorted((root / "sys/class/drm").glob("card[0-9]*"), key=lambda path: (len(path.name), path.name)):
        if not card.name[4:].isdigit() or _integer(card / "device/vendor", 16) != INTEL_VENDOR:
            continue  # a connector such as card0-HDMI-A-1, or another vendor
        pci_id = _integer(card / "device/device", 16) or 0
        address = (card / "device").resolve().name
        driver = (card / "device/driver").resolve().name if (card / "device/driver").exists() else None
        kinds = [kind for kind, first, last in _PCI_KINDS if first <= pci_id <= last]
        kind = kinds[0] if kinds else "igpu" if address == _INTEGRATED_ADDRESS else "arc"
        gpus.append(Gpu(kind, pci_id, address, driver))
    return tuple(gpus)


@dataclass(frozen=True)
class Machine:
    """Everything runtime.py decides from."""

    system: str  # sys.platform: "linux", "win32", "darwin"
    cpus: Cpus
    memory: Memory
    huge_pages: HugePages
    gpus: tuple[Gpu, ...]


def read_machine(root: Path = Path("/")) -> Machine:
    """Returns the facts about this machine; costs a few dozen small file reads."""
    return Machine(sys.platform, read_cpus(root), read_memory(root), read_huge_pages(root), read_gpus(root))
