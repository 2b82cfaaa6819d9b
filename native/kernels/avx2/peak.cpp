#include <immintrin.h>

#include "lowbit/peak.h"

namespace lowbit::avx2 {
namespace {

#include "shared/peak-inl.h"

constexpr int kSums = 12;

inline __m256i opaque(__m256i v) {  // else the product of constants would be moved out of the loop
    __asm__ volatile("" : "+x"(v));
    return v;
}

}  // namespace

int64_t peak_int8(int64_t rounds) {
    repeat<kSums>(rounds, _mm256_set1_epi8(1), _mm256_set1_epi8(2), [](__m256i s, __m256i a, __m256i b) {
        return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(opaque(a), b), a));
    });
    return rounds * kSums * 32;
}

int64_t peak_fp32(int64_t rounds) {
    repeat<kSums>(rounds, _mm256_set1_ps(1e-3f), _mm256_set1_ps(1e-3f),
                  [](__m256 s, __m256 a, __m256 b) { return _mm256_fmadd_ps(a, b, s); });
    return rounds * kSums * 8;
}

}  // namespace lowbit::avx2
