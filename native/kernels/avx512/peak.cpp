#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc's own AVX-512 headers (gcc bug 105593)
#include <immintrin.h>

#include "lowbit/peak.h"

namespace lowbit::avx512 {
namespace {

#include "shared/peak-inl.h"

constexpr int kSums = 24;

}  // namespace

int64_t peak_int8(int64_t rounds) {
    repeat<kSums>(rounds, _mm512_set1_epi8(1), _mm512_set1_epi8(2),
                  [](__m512i s, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(s, a, b); });
    return rounds * kSums * 64;
}

int64_t peak_fp32(int64_t rounds) {
    repeat<kSums>(rounds, _mm512_set1_ps(1e-3f), _mm512_set1_ps(1e-3f),
                  [](__m512 s, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, s); });
    return rounds * kSums * 16;
}

}  // namespace lowbit::avx512
