// fp32 products for AVX2.
#include <immintrin.h>

#include "avx2/linear.h"
#include "lowbit/codebooks.h"

namespace lowbit::avx2 {
namespace {

#include "shared/tables.h"

#include "avx2/lanes-inl.h"

#include "shared/linear-inl.h"

constexpr int panels_of_floats(int m) { return m <= 1 ? 4 : m <= 4 ? 2 : 1; }

template <FormatId id>
constexpr float kFloatFactor = id == FormatId::fp4 ? kFp4Int8.factor : 1.0f;

// Byte b of every lane as a signed integer.
template <int b>
inline Floats signed_byte(Quad v) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * b), 24));
}

template <int left>
inline __m256i shift_left(__m256i v) {
    if constexpr (left >= 0) return _mm256_slli_epi32(v, left);
    else return _mm256_srli_epi32(v, -left);
}

// Byte b of every lane as the float its code means, in units of kFloatFactor<id>.
template <FormatId id, int b>
inline Floats float_of(Quad codes) {
    if constexpr (kFormat<id>.codes == Codes::kGrid) {
        return signed_byte<b>(_mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(kFormat<id>.offset))));
    } else if constexpr (id == FormatId::fp4) {  // exact as integers
        return signed_byte<b>(look_up<id, 0>(codes));
    } else if constexpr (kFormat<id>.bits <= 4) {  // tables of eight: three bits of the code, then the fourth chooses
        static constexpr auto table = float_table<id, 16>();
        const __m256i index = _mm256_srli_epi32(codes, 8 * b);
        const Floats low = _mm256_permutevar8x32_ps(_mm256_load_ps(table.at), index);
        if constexpr (kFormat<id>.bits == 3) return low;
        const Floats high = _mm256_permutevar8x32_ps(_mm256_load_ps(table.at + 8), index);
        return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - 8 * b)));
    } else {
        constexpr Minifloat f = id == FormatId::fp6 ? kE3m2 : id == FormatId::fp8_e4m3 ? kE4m3 : kE5m2;
        constexpr int bits = kFormat<id>.bits, magnitude_bits = bits - 1;
        constexpr int magnitude_mask = ((1 << magnitude_bits) - 1) << (23 - f.mantissa_bits);
        // The fields where fp32 has them.
        const __m256i fields = _mm256_and_si256(shift_left<23 - f.mantissa_bits - 8 * b>(codes), _mm256_set1_epi32(magnitude_mask));
        const __m256i sign = _mm256_and_si256(shift_left<32 - bits - 8 * b>(codes), _mm256_set1_epi32(INT32_MIN));
        // With the exponent bias corrected, normals are right; 2v - 2^(1 - bias) is right for subnormals and larger for normals.
        const __m256i biased = _mm256_add_epi32(fields, _mm256_set1_epi32((127 - f.bias) << 23));
        const Floats v = _mm256_castsi256_ps(biased);
        const Floats smallest = _mm256_castsi256_ps(_mm256_set1_epi32((127 + 1 - f.bias) << 23));
        const Floats magnitude = _mm256_min_ps(v, _mm256_fmsub_ps(v, _mm256_set1_ps(2.0f), smallest));
        return _mm256_or_ps(magnitude, _mm256_castsi256_ps(sign));
    }
}

// The float at k of every row, for formats whose codes are floats.
template <FormatId id, int k>
inline Floats wide_float(const uint8_t* atom, int half) {
    if constexpr (id == FormatId::fp32) return _mm256_loadu_ps(reinterpret_cast<const float*>(atom + kLine * k) + 8 * half);
    if constexpr (id == FormatId::fp16) return load_halves(atom + kLine / 2 * k + kLine / 4 * half);
    const __m256i pair = load_quad(atom + kLine * (k / 2) + kLine / 2 * half);
    return _mm256_castsi256_ps(k % 2 ? _mm256_and_si256(pair, _mm256_set1_epi32(-65536)) : _mm256_slli_epi32(pair, 16));
}

#include "shared/fp32-inl.h"

#include "shared/float-inl.h"

constexpr int kTileRows = 4, kTileVectors = 3, kStripPanels = 3;
#include "shared/many-inl.h"

#include "shared/float_many-inl.h"

}  // namespace

void add_fp32(LinearKernels& k) {
#define X(name, number, ...)                                                          \
    k.fp32[number] = product<FloatProduct<Fp32, FormatId::name>, FormatId::name>; \
    k.fp32_many[number] = product_many<FloatMany<Fp32, FormatId::name>, FormatId::name>;
    LOWBIT_FORMATS(X)
#undef X
}

}  // namespace lowbit::avx2
