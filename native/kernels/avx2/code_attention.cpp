// Attention over codes for AVX2: the primitives; the loops are in shared/code_attention-inl.h.
#include <immintrin.h>

#include "lowbit/code_attention.h"
#include "shared/macros.h"

namespace lowbit::avx2 {
namespace {

#include "avx2/floats-inl.h"

#include "shared/exponential-inl.h"

using Pairs = __m256i;
constexpr int kWidenCodes = 16, kLanesLog2 = 3;

inline Pairs zero_pairs() { return _mm256_setzero_si256(); }

template <KvType type>
inline Pairs load_pairs(const void* codes, int64_t i) {
    if constexpr (type == KvType::int16)
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const int16_t*>(codes) + 2 * i));
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const int8_t*>(codes) + 2 * i)));
}

inline Pairs broadcast_pair(const int16_t* codes) {
    int32_t both;
    __builtin_memcpy(&both, codes, 4);
    return _mm256_set1_epi32(both);
}

inline Pairs dot(Pairs sum, Pairs a, Pairs b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline Floats to_floats(Pairs sums) { return _mm256_cvtepi32_ps(sums); }
inline void store_codes(int16_t* p, Floats v) {
    const __m256i codes = _mm256_cvtps_epi32(v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)));
}
inline Floats inside(Floats v, Floats outside, int i, KeyRange range) {
    const __m256i at = _mm256_add_epi32(_mm256_set1_epi32(i), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i early = _mm256_cmpgt_epi32(_mm256_set1_epi32(range.from), at), before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(range.to), at);
    return _mm256_blendv_ps(outside, v, _mm256_castsi256_ps(_mm256_andnot_si256(early, before_end)));
}
inline Floats magnitude(Floats v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline void widen_codes(const int8_t* codes, int16_t* wide) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide), _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}

inline Floats power_at(const uint32_t* table, Floats v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i power = _mm256_permutevar8x32_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(table)), bits);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(bits, 23 - kLanesLog2), power));
}

// f of the lanes of each of four vectors, which after two steps stand beside each other in both halves.
template <class F>
inline __m128 reduce_four(const Floats* v, F f) {
    const __m256d a = _mm256_castps_pd(f(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]))),
                  b = _mm256_castps_pd(f(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3])));
    const Floats all = f(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    return _mm256_castps256_ps128(f(all, _mm256_permute2f128_ps(all, all, 1)));
}
inline __m128 highest_of_four(const Floats* v) { return reduce_four(v, higher); }
inline __m128 sums_of_four(const Floats* v) { return reduce_four(v, add); }
inline Floats from_four(__m128 v) { return _mm256_castps128_ps256(v); }
inline __m128 to_four(Floats v) { return _mm256_castps256_ps128(v); }

#include "shared/code_attention-inl.h"

}  // namespace

CodeAttentionKernels code_attention_kernels() { return kCodeAttentionKernels; }

}  // namespace lowbit::avx2
