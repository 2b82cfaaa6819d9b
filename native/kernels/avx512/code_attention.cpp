// Attention over codes for AVX-512 with VNNI: the primitives; the loops are in shared/code_attention-inl.h.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "lowbit/code_attention.h"
#include "shared/macros.h"

namespace lowbit::avx512 {
namespace {

#include "avx512/floats-inl.h"

#include "shared/exponential-inl.h"

using Pairs = __m512i;
constexpr int kWidenCodes = 32, kLanesLog2 = 4;

inline Pairs zero_pairs() { return _mm512_setzero_si512(); }

template <KvType type>
inline Pairs load_pairs(const void* codes, int64_t i) {
    if constexpr (type == KvType::int16) return _mm512_loadu_si512(static_cast<const int16_t*>(codes) + 2 * i);
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const int8_t*>(codes) + 2 * i)));
}

inline Pairs broadcast_pair(const int16_t* codes) {
    int32_t both;
    __builtin_memcpy(&both, codes, 4);
    return _mm512_set1_epi32(both);
}

// asm, because gcc 12 loads the operands again for every sum and moves the sums from register to register.
inline Pairs dot(Pairs sum, Pairs a, Pairs b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
inline Floats to_floats(Pairs sums) { return _mm512_cvtepi32_ps(sums); }
inline void store_codes(int16_t* p, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
}
inline Floats inside(Floats v, Floats outside, int i, KeyRange range) {
    const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(i), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __mmask16 late = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(range.from));
    return _mm512_mask_blend_ps(_mm512_mask_cmplt_epi32_mask(late, at, _mm512_set1_epi32(range.to)), outside, v);
}
inline Floats magnitude(Floats v) { return _mm512_abs_ps(v); }
inline void widen_codes(const int8_t* codes, int16_t* wide) {
    _mm512_storeu_si512(wide, _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes))));
}

inline Floats power_at(const uint32_t* table, Floats v) {
    const __m512i bits = _mm512_castps_si512(v);
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_slli_epi32(bits, 23 - kLanesLog2), _mm512_permutexvar_epi32(bits, _mm512_load_si512(table))));
}

// f of the lanes of each of four vectors, which after two steps stand beside each other in every 128 bits.
template <class F>
inline __m128 reduce_four(const Floats* v, F f) {
    const __m512d a = _mm512_castps_pd(f(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]))),
                  b = _mm512_castps_pd(f(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3])));
    Floats all = f(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    all = f(all, _mm512_shuffle_f32x4(all, all, 0x4e));
    all = f(all, _mm512_shuffle_f32x4(all, all, 0xb1));
    return _mm512_castps512_ps128(all);
}
inline __m128 highest_of_four(const Floats* v) { return reduce_four(v, higher); }
inline __m128 sums_of_four(const Floats* v) { return reduce_four(v, add); }
inline Floats from_four(__m128 v) { return _mm512_castps128_ps512(v); }
inline __m128 to_four(Floats v) { return _mm512_castps512_ps128(v); }

#include "shared/code_attention-inl.h"

}  // namespace

CodeAttentionKernels code_attention_kernels() { return kCodeAttentionKernels; }

}  // namespace lowbit::avx512
