#include "lowbit/cpu.h"

#include <cpuid.h>
#include <unistd.h>

#include <cstring>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace lowbit {
namespace {

uint64_t xcr0() {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (static_cast<uint64_t>(hi) << 32) | lo;
}

bool bit(uint32_t word, int index) { return (word >> index) & 1; }

// Linux gives tile state only to processes that ask; without the permission the first tile instruction is fatal.
bool request_tile_permission() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int kRequestXcompPerm = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestXcompPerm, kTileData) == 0;
#else
    return false;
#endif
}

CpuFeatures detect() {
    CpuFeatures f{};
    uint32_t a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d)) return f;
    char vendor[13] = {};
    std::memcpy(vendor, &b, 4);
    std::memcpy(vendor + 4, &d, 4);
    std::memcpy(vendor + 8, &c, 4);
    f.vendor = vendor;
    const uint32_t max_leaf = a;

    char brand[49] = {};
    for (uint32_t i = 0; i < 3; i++) {
        if (!__get_cpuid(0x80000002 + i, &a, &b, &c, &d)) break;
        const uint32_t words[] = {a, b, c, d};
        std::memcpy(brand + 16 * i, words, 16);
    }
    f.brand = brand;
    while (!f.brand.empty() && f.brand.back() == ' ') f.brand.pop_back();

    const long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    f.l2_bytes = l2 > 0 ? l2 : 0;

    __get_cpuid(1, &a, &b, &c, &d);
    const bool osxsave = bit(c, 27);
    const uint64_t saved = osxsave ? xcr0() : 0;
    const bool os_ymm = (saved & 0x6) == 0x6;
    const bool os_zmm = (saved & 0xe6) == 0xe6;
    const bool os_tile = (saved & 0x60000) == 0x60000;
    f.fma = os_ymm && bit(c, 12);
    f.f16c = os_ymm && bit(c, 29);
    if (max_leaf < 7) return f;

    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    const uint32_t max_subleaf = a;
    f.avx2 = os_ymm && bit(b, 5);
    f.avx512f = os_zmm && bit(b, 16);
    f.avx512dq = os_zmm && bit(b, 17);
    f.avx512bw = os_zmm && bit(b, 30);
    f.avx512vl = os_zmm && bit(b, 31);
    f.avx512vbmi = os_zmm && bit(c, 1);
    f.avx512_vnni = os_zmm && bit(c, 11);
    f.amx_tile = os_tile && bit(d, 24);
    f.amx_int8 = os_tile && bit(d, 25);
    f.amx_bf16 = os_tile && bit(d, 22);
    if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        f.avx_vnni = os_ymm && bit(a, 4);
        f.avx512_bf16 = os_zmm && bit(a, 5);
    }
    if (f.amx_tile && !request_tile_permission()) f.amx_tile = f.amx_int8 = f.amx_bf16 = false;
    return f;
}

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features = detect();
    return features;
}

bool tier_available(Tier tier) {
    const CpuFeatures& f = cpu_features();
    switch (tier) {
        case Tier::scalar: return true;
        case Tier::avx2: return f.avx2 && f.fma && f.f16c;
        case Tier::avx512:
            return tier_available(Tier::avx2) && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq && f.avx512vbmi &&
                   f.avx512_vnni;
        case Tier::amx: return tier_available(Tier::avx512) && f.amx_tile && f.amx_int8;
    }
    return false;
}

Tier best_tier() {
    for (Tier t : {Tier::amx, Tier::avx512, Tier::avx2})
        if (tier_available(t)) return t;
    return Tier::scalar;
}

}  // namespace lowbit
