"""Where and how a model runs: device, threads, tier, compute type; every choice with its reason.

Owns the environment: no other module reads or writes a variable. A `Runtime` is what somebody asks for, a `Resolved`
what this machine gives. Neither is global state; the thread pools are shared because threads are, one pool per size.

    LOWBIT_ISA       scalar | avx2 | avx512 | amx: the highest tier to use. Can only lower the tier.
    LOWBIT_THREADS   threads where the caller asks for none in particular.

No variable is required. What Intel GPUs want set is the table `GPU_ENVIRONMENT`; a value of the user's always wins.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, MutableMapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lowbit.machine import Cpus, Gpu, Machine, read_machine

logger = logging.getLogger(__name__)

TIERS = ("scalar", "avx2", "avx512", "amx")  # lowest first
COMPUTE_TYPES = ("int8", "bf16", "fp32")
PRECISIONS = ("fast", "auto", "bf16", "high")
KV_DTYPES = ("int16", "fp16", "bf16", "int8", "fp32")
DEVICE_KINDS = ("auto", "cpu", "xpu")
RUNNABLE = frozenset({"cpu"})  # device kinds that this version can execute on


@dataclass(frozen=True)
class Decision:
    """One choice: what it is about, what was chosen (as text) and why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Setting:
    """One environment variable for Intel GPUs and where it applies."""

    name: str
    value: str
    kinds: frozenset[str]  # of machine.Gpu
    systems: frozenset[str]  # of sys.platform
    reason: str


_EVERY_GPU = frozenset({"igpu", "arc", "flex", "max"})
GPU_ENVIRONMENT = (
    Setting(
        "SYCL_CACHE_PERSISTENT", "1", _EVERY_GPU, frozenset({"linux", "win32"}),
        "keeps compiled GPU kernels on disk; without it every process compiles them again, for minutes",
    ),
    Setting(
        "BIGDL_LLM_XMX_DISABLED", "1", frozenset({"igpu"}), frozenset({"win32"}),
        "the predecessors' advice for Core Ultra graphics on Windows; only their binaries read it",
    ),
    Setting(
        "SYCL_PI_LEVEL_ZERO_USE_IMMEDIATE_COMMANDLISTS", "1", frozenset({"arc", "flex", "max"}), frozenset({"linux"}),
        "submits each kernel at once, which shortens the step of a token",
    ),
    Setting(
        "USE_XETLA", "OFF", frozenset({"arc", "flex"}), frozenset({"linux"}),
        "XeTLA kernels are for GPU Max; others must not try them",
    ),
    Setting(
        "ENABLE_SDP_FUSION", "1", frozenset({"max"}), frozenset({"linux"}),
        "fused attention on GPU Max",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """What the caller asks for; None and "auto" leave the choice to `resolve`.

    device: "auto", "cpu", "xpu" or "xpu:N". threads: native threads. tier: highest instruction set tier to use.
    precision: "fast" rounds the inputs of every matrix to int8 (64 share a scale; those of bf16, fp6 and fp8 weights to
    bf16), "bf16" to bf16, "high" none, "auto" (the default) as "fast", but to bf16 those that int8 was measured to lose
    too much of when the model was quantised. compute: type of the inner products, "int8", "bf16" or "fp32": given
    alone, the same as "fast", "bf16" and "high". kv_dtype: storage type of the KV cache ("int16" or "int8", codes with
    a scale for each key and value of a head and attention in integers, or "fp16", "bf16", "fp32"). context: longest
    sequence in tokens (None: what the model was made for).
    """

    device: str = "auto"
    threads: int | None = None
    tier: str | None = None
    compute: str | None = None
    kv_dtype: str = "int16"
    context: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        split_device(self.device)
        if self.tier is not None:
            _check_choice("tier", self.tier, TIERS)
        precision = _precision(self.precision, self.compute)
        object.__setattr__(self, "precision", precision)
        object.__setattr__(self, "compute", _COMPUTE_OF[precision])
        _check_choice("kv_dtype", self.kv_dtype, KV_DTYPES)
        for name in ("threads", "context"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, or None; got {value!r}")

    def resolve(self, machine: Machine | None = None, environment: MutableMapping[str, str] | None = None) -> Resolved:
        """Returns the values this process will use, with the reason of each.

        Sets the GPU environment when, and only when, an xpu is chosen. `machine` and `environment` default to the
        real ones. Raises ValueError for a choice this machine or this version of lowbit cannot honour.
        """
        machine = machine or read_machine()
        environment = os.environ if environment is None else environment
        device = _choose_device(self.device, machine)
        settings = gpu_environment(device.value, machine, environment, apply=True)
        threads = _choose_threads(self.threads, machine, environment)
        tier = _choose_tier(self.tier, machine, environment)
        assert self.precision is not None  # __post_init__ has filled them in
        assert self.compute is not None
        resolved = Resolved(
            device=device.value,
            threads=int(threads.value),
            tier=tier.value,
            compute=self.compute,
            kv_dtype=self.kv_dtype,
            context=self.context,
            precision=self.precision,
            decisions=(
                device,
                threads,
                tier,
                Decision("precision", self.precision, _PRECISION_REASONS[self.precision]),
                Decision("compute", self.compute, _COMPUTE_REASONS[self.compute]),
                Decision("kv_dtype", self.kv_dtype, "type of the key and value cache"),
                *settings,
            ),
        )
        for decision in resolved.decisions:
            logger.debug("%s = %s: %s", decision.name, decision.value, decision.reason)
        return resolved


_COMPUTE_OF = {"fast": "int8", "auto": "int8", "bf16": "bf16", "high": "fp32"}  # by precision
_PRECISION_OF = {"int8": "fast", "bf16": "bf16", "fp32": "high"}  # by a compute type that was given alone
_COMPUTE_REASONS = {
    "int8": "activations as int8 per 64 values for formats of up to 5 bits and sym_int8, as bf16 for bf16, fp6 and "
    "fp8; fp16 and fp32 weights compute in fp32",
    "bf16": "precision is bf16: activations rounded one by one, but those of fp16 and fp32 weights not at all",
    "fp32": "precision is high: slower, no activation rounding",
}
_PRECISION_REASONS = {
    "fast": "asked for: int8 (bf16, fp6 and fp8 weights: bf16) activations in every matrix",
    "auto": "bf16 where a model's activations were measured to be too uneven for int8",
    "bf16": "asked for: bf16 activations in every matrix",
    "high": "asked for: no rounded activations",
}


@dataclass(frozen=True)
class Resolved:
    """What runs: the fields of `Runtime` with every choice made, and `decisions` saying why."""

    device: str
    threads: int
    tier: str
    compute: str
    kv_dtype: str
    context: int | None
    precision: str
    decisions: tuple[Decision, ...]

    def resolve(self) -> Resolved:
        """Returns itself, so that a resolved runtime can be passed on where a `Runtime` is expected."""
        return self

    def replace(self, **changes: object) -> Resolved:
        """Returns a copy with other values, for example a smaller context."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def pool(self) -> Any:
        """The shared native thread pool of this size."""
        return pool(self.threads)


def pool(threads: int | None = None) -> Any:
    """Returns the process's native thread pool of that many threads (None: the default number), made at first use."""
    from lowbit import ops

    if threads is None:
        threads = Runtime().resolve().threads
    if threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    return ops.pool(threads)


def nearest(value: str, choices: Iterable[str]) -> str:
    """Returns the end of an error's sentence: "; did you mean 'x'?" for the most similar choice, "." when none is."""
    close = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}{nearest(str(value), choices)} Choices: {', '.join(choices)}")


def _precision(precision: str | None, compute: str | None) -> str:
    """Returns the precision that was asked for, by its own name or by a compute type."""
    if precision is not None:
        _check_choice("precision", precision, PRECISIONS)
    if compute is None:
        return precision or "auto"
    _check_choice("compute", compute, COMPUTE_TYPES)
    if precision is None:
        return _PRECISION_OF[compute]
    if _COMPUTE_OF[precision] != compute:
        raise ValueError(
            f"precision={precision!r} and compute={compute!r} contradict each other: 'high' is fp32, 'bf16' is bf16, "
            "'fast' and 'auto' are int8. Give precision alone"
        )
    return precision


def split_device(device: str) -> tuple[str, int | None]:
    """Returns ("auto" | "cpu" | "xpu", index or None) of a device name. Raises ValueError for any other name."""
    kind, colon, index = str(device).partition(":")
    if kind not in DEVICE_KINDS or (colon and (kind != "xpu" or not index.isdecimal())):
        hint = nearest(kind, DEVICE_KINDS)
        raise ValueError(f"unknown device {device!r}{hint} Devices: 'auto', 'cpu', 'xpu' or 'xpu:N' (an Intel GPU)")
    return kind, int(index) if index else None


def _gpus_text(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(f"xpu:{i} {gpu.kind} [8086:{gpu.pci_id:04x}] at {gpu.address}" for i, gpu in enumerate(gpus))


def _choose_device(asked: str, machine: Machine) -> Decision:
    kind, index = split_device(asked)
    if kind == "cpu":
        return Decision("device", "cpu", "asked for")
    if kind == "xpu":
        missing = missing_for_xpu(index or 0, machine)
        if missing:
            raise ValueError(
                f"device {asked!r} cannot be used: {'; '.join(missing)}. "
                "Use device='cpu', or 'auto' to take what can run."
            )
        return Decision("device", f"xpu:{index or 0}", f"asked for: {_gpus_text(machine.gpus)}")
    if not machine.gpus:
        found_on = "no Intel GPU found" if machine.system == "linux" else "Intel GPUs are only looked for on Linux"
        return Decision("device", "cpu", found_on)
    found = _gpus_text(machine.gpus)
    # torch is only asked when the answer can matter: importing it costs seconds.
    if "xpu" in RUNNABLE and not (missing := missing_for_xpu(0, machine)):
        return Decision("device", "xpu:0", f"found {found}")
    reason = "; ".join(missing) if "xpu" in RUNNABLE else "this version of lowbit executes on the CPU only"
    return Decision("device", "cpu", f"found {found}, but {reason}")


def missing_for_xpu(index: int, machine: Machine) -> list[str]:
    """Returns what is missing to run on Intel GPU number `index`, in words. Imports torch where it is installed."""
    missing = []
    in_torch = _missing_in_torch(index)
    if (
        in_torch
    ):  # where PyTorch sees the GPU (also one that /sys does not show, as under WSL), the rest does not matter
        if machine.system == "linux" and not machine.gpus:
            missing.append("no Intel GPU found (/sys/class/drm lists none; in a container, pass /dev/dri through)")
        unbound = [gpu.address for gpu in machine.gpus if gpu.driver is None]
        if unbound:
            missing.append(f"the Intel GPU at {', '.join(unbound)} has no kernel driver (i915 or xe)")
    missing += in_torch
    if "xpu" not in RUNNABLE:
        missing.append("this version of lowbit executes on the CPU only, the GPU path is not in it yet")
    return missing


def _missing_in_torch(index: int) -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return ["PyTorch is not installed (GPU execution needs a build of it with xpu)"]
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken install: a library it links is missing
        return [f"PyTorch does not load ({error})"]
    if not hasattr(torch, "xpu") or not torch.xpu._is_compiled():
        return [f"PyTorch {torch.__version__} is built without xpu (install the build of it for Intel GPUs)"]
    count = torch.xpu.device_count()
    if count == 0:
        return [f"PyTorch {torch.__version__} sees no xpu (is the GPU's compute runtime installed?)"]
    if index >= count:
        return [f"there is no xpu:{index}: PyTorch sees {count} (xpu:0 to xpu:{count - 1})"]
    return []


def gpu_environment(
    device: str, machine: Machine, environment: MutableMapping[str, str], *, apply: bool
) -> tuple[Decision, ...]:
    """Returns what the environment of a device is to be, one decision per variable; sets it when `apply` is true.

    Empty for the CPU. A variable the user has set stays as it is. Where the kind of the GPU is unknown (Windows shows
    it to no file), what holds for every kind is taken.
    """
    kind, index = split_device(device)
    if kind != "xpu":
        return ()
    known = {machine.gpus[index or 0].kind} if (index or 0) < len(machine.gpus) else _EVERY_GPU
    decisions = []
    for setting in GPU_ENVIRONMENT:
        if machine.system not in setting.systems or not known <= setting.kinds:
            continue
        if setting.name in environment:
            decisions.append(Decision(setting.name, environment[setting.name], "set by the user, left alone"))
            continue
        late = "; torch was imported before, it may come too late" if apply and "torch" in sys.modules else ""
        if apply:
            environment[setting.name] = setting.value
        decisions.append(Decision(setting.name, setting.value, setting.reason + late))
    return tuple(decisions)


def _choose_threads(asked: int | None, machine: Machine, environment: MutableMapping[str, str]) -> Decision:
    if asked is not None:
        return Decision("threads", str(asked), "asked for")
    text = environment.get("LOWBIT_THREADS", "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"LOWBIT_THREADS is {text!r}; it must be a whole number of at least 1, or unset")
        return Decision("threads", text, "LOWBIT_THREADS")
    count, reason = default_threads(machine.cpus)
    return Decision("threads", str(count), reason)


def default_threads(cpus: Cpus) -> tuple[int, str]:
    """Returns the number of threads for these CPUs and the reason.

    One per allowed physical core (hyper-threads share the load ports that stream weights), performance cores only on
    hybrid parts (a static split waits for the slowest core), at most the control group's quota rounded up.
    """
    usable, reason = cpus.allowed, f"{len(cpus.allowed)} CPUs allowed"
    if cpus.performance is not None and usable & cpus.performance:
        usable = usable & cpus.performance
        reason += f", {len(usable)} of them on performance cores"
    count = len(usable)
    if cpus.cores is None:
        reason += ", the machine does not tell which share a core"
    else:
        count = sum(1 for core in cpus.cores if core & usable)
        reason += f", {count} physical cores"
    if cpus.quota is not None and cpus.quota < count:
        count = cpus.within_quota(count)
        reason += f", limited by the control group to {cpus.quota:g} CPUs"
    return count, reason


def _choose_tier(asked: str | None, machine: Machine, environment: MutableMapping[str, str]) -> Decision:
    from lowbit import ops

    available = ops.tiers()
    no_tiles = machine.cpus.tiles and available[-1] == "avx512"  # all that tier amx needs but the permission
    refused = "; it has AMX too, whose tiles the operating system refuses to this process" if no_tiles else ""
    tier, reason = ops.default_tier(), "best this CPU has" + refused
    if asked is not None:
        if asked not in available:
            raise ValueError(f"tier {asked!r} cannot run here: this CPU has {', '.join(available)}{refused}")
        tier, reason = asked, "asked for"
    wish = environment.get("LOWBIT_ISA", "").strip().lower()
    if not wish:
        return Decision("tier", tier, reason)
    if wish not in TIERS:
        raise ValueError(f"LOWBIT_ISA is {wish!r}, no tier{nearest(wish, TIERS)} Tiers: {', '.join(TIERS)}")
    if TIERS.index(wish) >= TIERS.index(tier):
        effect = "ignored, it can only lower the tier" if TIERS.index(wish) > TIERS.index(tier) else "agrees"
        return Decision("tier", tier, f"{reason} (LOWBIT_ISA={wish}: {effect})")
    # The wish is a rung below; where this CPU lacks that very rung, the next lower one that it has.
    lowered = [t for t in available if TIERS.index(t) <= TIERS.index(wish)][-1]
    return Decision("tier", lowered, f"lowered from {tier} by LOWBIT_ISA={wish}")


def describe(machine: Machine | None = None, environment: MutableMapping[str, str] | None = None) -> dict[str, Any]:
    """Returns this machine and what `Runtime()` chooses on it, with reasons, as JSON-ready data; sets nothing.

    Keys: cpu, memory, huge_pages, devices, decisions, environment. Sizes are bytes; None: the machine does not tell.
    """
    from lowbit import ops

    machine = machine or read_machine()
    environment = os.environ if environment is None else environment
    features = ops.cpu_features()
    resolved = Runtime().resolve(machine, dict(environment))
    variables = [
        Decision(name, environment.get(name, "(unset)"), meaning)
        for name, meaning in (
            ("LOWBIT_ISA", "highest tier to use; can only lower it"),
            ("LOWBIT_THREADS", "threads where none are asked for"),
        )
    ]
    for index in range(len(machine.gpus)):
        variables += gpu_environment(f"xpu:{index}", machine, environment, apply=False)
    return {
        "cpu": {
            "brand": features["brand"],
            "vendor": features["vendor"],
            "features": sorted(name for name, has in features.items() if has is True),
            "tiers": ops.tiers(),
            "l2_bytes": features["l2_bytes"],
            "allowed_cpus": sorted(machine.cpus.allowed),
            "physical_cores": None if machine.cpus.cores is None else len(machine.cpus.cores),
            "quota": machine.cpus.quota,
        },
        "memory": asdict(machine.memory),
        "huge_pages": asdict(machine.huge_pages),
        "devices": [
            {"name": "cpu", "kind": "cpu", "usable": True, "missing": []},
            *(
                {
                    "name": f"xpu:{index}",
                    "kind": gpu.kind,
                    "pci": f"8086:{gpu.pci_id:04x} at {gpu.address}",
                    "usable": not (missing := missing_for_xpu(index, machine)),
                    "missing": missing,
                }
                for index, gpu in enumerate(machine.gpus)
            ),
        ],
        "decisions": [asdict(decision) for decision in resolved.decisions],
        "environment": [asdict(decision) for decision in dict.fromkeys(variables)],
    }
