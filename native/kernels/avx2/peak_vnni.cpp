#include <immintrin.h>

#include "lowbit/peak.h"

namespace lowbit::avx2 {
namespace {

#include "shared/peak-inl.h"

constexpr int kSums = 12;

}  // namespace

int64_t peak_int8_vnni(int64_t rounds) {
    repeat<kSums>(rounds, _mm256_set1_epi8(1), _mm256_set1_epi8(2),
                  [](__m256i s, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(s, a, b); });
    return rounds * kSums * 32;
}

}  // namespace lowbit::avx2
