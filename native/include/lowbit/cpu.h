// CPU features and the tier ladder. Tiers are chosen by feature bits and by what the operating system saves,
// never by model numbers.
#pragma once
#include <string>

namespace lowbit {

enum class Tier : int { scalar = 0, avx2 = 1, avx512 = 2, amx = 3 };
inline constexpr const char* kTierNames[] = {"scalar", "avx2", "avx512", "amx"};

struct CpuFeatures {
    bool avx2, fma, f16c;                                            // tier avx2 needs all three
    bool avx_vnni;                                                   // used inside tier avx2 where present
    bool avx512f, avx512bw, avx512vl, avx512dq, avx512vbmi, avx512_vnni;  // tier avx512 needs all six
    bool avx512_bf16;
    bool amx_tile, amx_int8;                                         // tier amx needs both, and that the kernel grants tiles
    bool amx_bf16;
    std::string vendor, brand;
    long l2_bytes;
};

const CpuFeatures& cpu_features();     // detected once, OS support (XCR0) included
Tier best_tier();                      // highest tier this process can run
bool tier_available(Tier tier);

}  // namespace lowbit
