// The inner instruction of a tier's products on registers alone: what benchmarks measure the products against.
#pragma once
#include <cstdint>

namespace lowbit {

// Runs `rounds` rounds of independent multiply-adds; returns how many multiply-adds that was. Call them only where the tier is
// available (avx2 int8: vpmaddubsw, vpmaddwd and vpaddd; avx2_vnni: where the CPU has AVX-VNNI; bf16: AVX512_BF16 or AMX-BF16).
using Peak = int64_t (*)(int64_t rounds);
namespace avx2 { int64_t peak_int8(int64_t rounds); int64_t peak_int8_vnni(int64_t rounds); int64_t peak_fp32(int64_t rounds); }
namespace amx { int64_t peak_int8(int64_t rounds); int64_t peak_bf16(int64_t rounds); }
namespace avx512 { int64_t peak_int8(int64_t rounds); int64_t peak_fp32(int64_t rounds); int64_t peak_bf16(int64_t rounds); }

}  // namespace lowbit
