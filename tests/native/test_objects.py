"""What compiled kernels may contain: no instruction above their tier, no symbol another unit could be linked to.

A function emitted weak in the AVX-512 unit may be the copy that the linker keeps for everybody: an illegal instruction
on other CPUs.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILDS = [build for build in (ROOT / "build").glob("*") if not build.name.startswith("sanitize")]
TIERS = sorted(folder.name for folder in (ROOT / "native" / "kernels").glob("*/") if folder.name != "shared")
INSTRUCTION = re.compile(r"^ *[0-9a-f]+:\t(.*)$", re.MULTILINE)
VEX = re.compile(r"^(\{[a-z]+\} )?v[a-z]|%[yz]mm")  # AVX and above
TILE = re.compile(r"^(tile|tdp|ldtilecfg|sttilecfg)")  # AMX
# Of their tiers where the CPU has them, so in units of their own.
VNNI = re.compile(r"^(\{[a-z]+\} )?vpdp")
BF16 = re.compile(r"^v(dp|cvtne2?ps2)\w*bf16")
EVEX = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b|\{evex\}")  # AVX-512


def objects(library: str) -> list[Path]:
    """Returns the object files of a CMake library in any build of this checkout; skips the test without them."""
    for tool in ("nm", "objdump"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (binutils) is not installed")
    found = [path for build in BUILDS for path in build.glob(f"**/{library}.dir/**/*.o")]
    if not found:
        pytest.skip("no object files here: the package was built elsewhere")
    return found


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("tier", TIERS)
def test_kernels_define_no_weak_symbols(tier):
    for path in objects(f"kernels_{tier}"):
        symbols = [line.split(None, 2)[-2:] for line in run("nm", "-C", str(path)).splitlines()]
        weak = [name for kind, name in symbols if kind in "WVwvu"]
        assert not weak, f"{path.name}: {weak[:3]}"
        strange = [name for kind, name in symbols if kind == "T" and not name.startswith(f"lowbit::{tier}::")]
        assert not strange, f"{path.name} exports {strange[:3]}"
        started = [name for _, name in symbols if "_GLOBAL__sub_I" in name]  # would run before any choice of a tier
        assert not started, f"{path.name} initialises variables when it is loaded"


ABOVE = {
    "kernels_scalar": VEX,
    "kernels_avx2": EVEX,
    "kernels_avx512": TILE,
    "kernels_amx_model": TILE,
    "kernels_amx": None,  # the highest
    "lowbit_core": VEX,
    "_native": VEX,
}


def test_every_tier_is_looked_at():
    assert {f"kernels_{tier}" for tier in TIERS} | {"lowbit_core", "_native"} == set(ABOVE)


@pytest.mark.parametrize(("library", "forbidden"), [(name, above) for name, above in ABOVE.items() if above])
def test_no_instruction_above_the_tier(library, forbidden):
    for path in objects(library):
        instructions = INSTRUCTION.findall(run("objdump", "-d", "--no-show-raw-insn", str(path)))
        above = [i for i in instructions if forbidden.search(i)]
        assert not above, f"{path.name}: {above[0]}"


@pytest.mark.parametrize(
    ("library", "feature", "unit"),
    [
        ("kernels_avx2", VNNI, "vnni"),
        ("kernels_avx512", BF16, "bf16"),
        ("kernels_amx", BF16, None),
    ],
)
def test_features_of_some_cpus_stay_in_their_units(library, feature, unit):
    for path in objects(library):
        instructions = INSTRUCTION.findall(run("objdump", "-d", "--no-show-raw-insn", str(path)))
        used = any(feature.search(i) for i in instructions)
        assert used == (unit is not None and unit in path.name), path.name


def test_the_search_for_instructions_can_fail():
    def uses(library: str, pattern: re.Pattern) -> bool:
        code = "".join(run("objdump", "-d", "--no-show-raw-insn", str(p)) for p in objects(library))
        return any(pattern.search(i) for i in INSTRUCTION.findall(code))

    assert uses("kernels_avx512", EVEX)
    assert uses("kernels_avx2", re.compile("%ymm"))
    assert uses("kernels_amx", TILE)
