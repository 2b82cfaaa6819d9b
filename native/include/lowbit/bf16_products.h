// Products of bf16 weights with activations that are rounded to bf16: what bf16 weights get under the compute type int8. A tier
// without kernels for them multiplies the rounded activations by its fp32 kernels.
#pragma once
#include "lowbit/cpu.h"
#include "lowbit/tensor.h"

namespace lowbit {

struct HalfRows {  // bf16 [m][stride], zero from k to k_padded
    const uint16_t* data;
    int64_t stride;
    int64_t m;
};

// As LinearFp32 and LinearFp32Many (kernels.h). Each output is one fp32 sum over all k in pairs, in an order that depends on nothing
// else; subnormal weights, activations and sums count as zero.
using LinearBf16 = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int m,
                            float* y, int64_t y_stride);
using LinearBf16Many = void (*)(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row,
                                int64_t m, float* y, int64_t y_stride, uint8_t* scratch);

struct Bf16Kernels {
    LinearBf16 few;
    LinearBf16Many many;
};

// Both null where the tier or this CPU has none. `tier` must be available.
const Bf16Kernels& bf16_kernels(Tier tier);

namespace avx512 { Bf16Kernels bf16_kernels(); }  // only where the CPU has AVX512_BF16

}  // namespace lowbit
