// The linear kernels of the AVX2 tier, and how its activations are quantised.
#include <immintrin.h>

#include "avx2/linear.h"

namespace lowbit::avx2 {
namespace {

inline __m128i fold(__m256i v, auto combine) {
    const __m128i s = combine(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i t = combine(s, _mm_shuffle_epi32(s, 0x4e));
    return combine(t, _mm_shuffle_epi32(t, 0xb1));
}

void quantize_row(const float* x, int64_t k, int64_t k_padded, int width, int8_t* codes, float* scales, int32_t* sums) {
    const __m256i magnitude_bits = _mm256_set1_epi32(INT32_MAX);
    for (int64_t begin = 0, block = 0; begin < k_padded; begin += kActivationK, block++) {
        const float* from = x + begin;
        float tail[kActivationK] = {};
        if (begin + kActivationK > k) {
            for (int64_t i = begin; i < k; i++) tail[i - begin] = x[i];
            from = tail;
        }
        __m256i largest = _mm256_setzero_si256();
        for (int i = 0; i < kActivationK; i += 8)
            // Magnitudes are compared as bit patterns, so a NaN is larger than anything and reaches the scale.
            largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(from + i)), magnitude_bits));
        const int bits = _mm_cvtsi128_si32(fold(largest, [](__m128i a, __m128i b) { return _mm_max_epu32(a, b); }));
        float magnitude;
        __builtin_memcpy(&magnitude, &bits, 4);
        const float inverse = 127.0f / magnitude;
        const __m256i usable = _mm256_set1_epi32(inverse > 0 && inverse <= 3.4028234663852886e38f ? -1 : 0);
        for (int a = 0; a < kActivationK / kAtomK; a++) {
            __m256i q[4], total = _mm256_setzero_si256();
            for (int i = 0; i < 4; i++) {
                const __m256 r = _mm256_mul_ps(_mm256_loadu_ps(from + a * kAtomK + 8 * i), _mm256_set1_ps(inverse));
                q[i] = _mm256_and_si256(_mm256_cvtps_epi32(r), usable);  // rounds halves to even
                total = _mm256_add_epi32(total, q[i]);
            }
            const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
            const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            int8_t* at = codes + (begin + a * kAtomK) * width;
            if (width == 1) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), ordered);
            } else {
                int32_t fours[kAtomK / 4];
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(fours), ordered);
                for (int i = 0; i < kAtomK / 4; i++) __builtin_memcpy(at + 4 * i * width, fours + i, 4);
            }
            sums[(block * kActivationK / kAtomK + a) * width] =
                _mm_cvtsi128_si32(fold(total, [](__m128i x, __m128i y) { return _mm_add_epi32(x, y); }));
        }
        scales[block * width] = magnitude / 127.0f;
    }
}

}  // namespace

LinearKernels linear_kernels_without_vnni() {
    LinearKernels k{};
    add_int8(k);
    add_fp32(k);
    k.quantize_row = quantize_row;
    return k;
}

LinearKernels linear_kernels() {
    LinearKernels k = linear_kernels_without_vnni();
    if (cpu_features().avx_vnni) add_int8_vnni(k);
    return k;
}

}  // namespace lowbit::avx2
