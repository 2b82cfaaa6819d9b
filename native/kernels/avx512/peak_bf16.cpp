#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in gcc's own AVX-512 headers (gcc bug 105593)
#include <immintrin.h>

#include "lowbit/peak.h"

namespace lowbit::avx512 {
namespace {

#include "shared/peak-inl.h"

constexpr int kSums = 24;

}  // namespace

int64_t peak_bf16(int64_t rounds) {
    repeat<kSums>(rounds, _mm512_set1_ps(1e-3f), _mm512_set1_ps(1e-3f),
                  [](__m512 s, __m512 a, __m512 b) { return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b); });
    return rounds * kSums * 32;
}

}  // namespace lowbit::avx512
