// The linear kernels of the AVX-512 tier (with VNNI and VBMI), and how its activations are quantised.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "avx512/linear.h"

namespace lowbit::avx512 {
namespace {

void quantize_row(const float* x, int64_t k, int64_t k_padded, int width, int8_t* codes, float* scales, int32_t* sums) {
    const __m512i magnitude_bits = _mm512_set1_epi32(INT32_MAX);
    for (int64_t begin = 0, block = 0; begin < k_padded; begin += kAtomK, block++) {
        const int64_t left = k - begin;
        const uint32_t valid = left >= kAtomK ? ~0u : left <= 0 ? 0 : (1u << left) - 1;
        const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid), x + begin);
        const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid >> 16), x + begin + 16);
        // Magnitudes are compared as bit patterns, so a NaN is larger than anything and reaches the scale.
        const __m512i largest = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), magnitude_bits),
                                                 _mm512_and_si512(_mm512_castps_si512(high), magnitude_bits));
        const uint32_t bits = _mm512_reduce_max_epu32(largest);
        float scale;
        __builtin_memcpy(&scale, &bits, 4);
        scale /= 127.0f;
        const __mmask16 usable = scale > 0 && scale <= 3.4028234663852886e38f ? 0xffff : 0;
        const auto quantize = [&](__m512 v) {
            v = _mm512_div_ps(v, _mm512_set1_ps(scale));
            v = _mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f));
            return _mm512_maskz_cvtps_epi32(usable, v);  // rounds halves to even
        };
        const __m512i q0 = quantize(low), q1 = quantize(high);
        const __m128i packed[] = {_mm512_cvtepi32_epi8(q0), _mm512_cvtepi32_epi8(q1)};
        int8_t* at = codes + begin * width;
        if (width == 1 || width == kTileBlockRows) {
            __builtin_memcpy(at, packed, kAtomK);
        } else {
            const auto* fours = reinterpret_cast<const uint8_t*>(packed);
            for (int i = 0; i < kAtomK / 4; i++) __builtin_memcpy(at + 4 * i * width, fours + 4 * i, 4);
        }
        scales[block * width] = scale;
        sums[block * width] = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
    }
}

}  // namespace

LinearKernels linear_kernels() {
    LinearKernels k{};
    add_int8(k);
    add_fp32(k);
    k.quantize_row = quantize_row;
    return k;
}

}  // namespace lowbit::avx512
