// The linear kernels of the AVX-512 tier (with VNNI and VBMI), and how its activations are quantised.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "avx512/linear.h"

namespace lowbit::avx512 {
namespace {

void quantize_row(const float* x, int64_t k, int64_t k_padded, int width, int8_t* codes, float* scales, int32_t* sums) {
    const __m512i magnitude_bits = _mm512_set1_epi32(INT32_MAX);
    for (int64_t begin = 0, block = 0; begin < k_padded; begin += kActivationK, block++) {
        const int64_t left = k - begin;
        const uint64_t valid = left >= kActivationK ? ~uint64_t{0} : left <= 0 ? 0 : (uint64_t{1} << left) - 1;
        __m512 v[4];
        __m512i largest = _mm512_setzero_si512();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(valid >> 16 * i), x + begin + 16 * i);
            // Magnitudes are compared as bit patterns, so a NaN is larger than anything and reaches the scale.
            largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(v[i]), magnitude_bits));
        }
        const uint32_t bits = _mm512_reduce_max_epu32(largest);
        float magnitude;
        __builtin_memcpy(&magnitude, &bits, 4);
        const float inverse = 127.0f / magnitude;
        const __mmask16 usable = inverse > 0 && inverse <= 3.4028234663852886e38f ? 0xffff : 0;
        __m512i q[4];
        __m128i packed[4];
        for (int i = 0; i < 4; i++) {
            q[i] = _mm512_maskz_cvtps_epi32(usable, _mm512_mul_ps(v[i], _mm512_set1_ps(inverse)));  // rounds halves to even
            packed[i] = _mm512_cvtepi32_epi8(q[i]);
        }
        int8_t* at = codes + begin * width;
        if (width == 1 || width == kTileBlockRows) {
            __builtin_memcpy(at, packed, kActivationK);
        } else {
            const auto* fours = reinterpret_cast<const uint8_t*>(packed);
            for (int i = 0; i < kActivationK / 4; i++) __builtin_memcpy(at + 4 * i * width, fours + 4 * i, 4);
        }
        scales[block * width] = magnitude / 127.0f;
        for (int a = 0; a < 2; a++) sums[(2 * block + a) * width] = _mm512_reduce_add_epi32(_mm512_add_epi32(q[2 * a], q[2 * a + 1]));
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
