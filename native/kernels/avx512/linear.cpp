// Linear products for AVX-512 with VNNI and VBMI: a quad is one register of 16 rows x 4 k, a product one vpdpbusd.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "lowbit/codebooks.h"
#include "lowbit/kernels.h"

namespace lowbit::avx512 {
namespace {

#include "shared/tables.h"

using Quad = __m512i;
using Ints = __m512i;
using Floats = __m512;
constexpr int kLanes = 16;
constexpr int64_t kPrefetchBytes = 2048;
constexpr int panels_at_once(int m) { return m <= 4 ? 4 : 2; }

inline Quad load_quad(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Quad low_nibble(Quad v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Quad high_nibble(Quad v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
template <int i>
inline Quad crumb(Quad v) { return _mm512_and_si512(_mm512_srli_epi16(v, 2 * i), _mm512_set1_epi8(3)); }
inline Quad join_nibble(Quad low, Quad high) { return _mm512_or_si512(low, _mm512_slli_epi16(high, 4)); }

// codes + value where the 64-bit mask has a one.
template <int value>
inline Quad add_bit(Quad codes, const uint8_t* mask_bytes, int) {
    uint64_t mask;
    __builtin_memcpy(&mask, mask_bytes, 8);
    return _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(value));
}

inline Quad broadcast_four(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline Floats load_halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats multiply(Floats a, const float* b) { return _mm512_mul_ps(a, _mm512_set1_ps(*b)); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

inline float sum_of(const float* x, int count) {
    Floats s = zero();
    for (int i = 0; i < count; i += 16) s = add(s, _mm512_loadu_ps(x + i));
    return _mm512_reduce_add_ps(s);
}

// ---- int8 compute: vpdpbusd multiplies unsigned weights with signed activations; what was added to make the weights
// unsigned comes off at the start of the sum.

template <FormatId id>
constexpr int kOffset = kFormat<id>.codes == Codes::kCodebook ? 128 : kFormat<id>.offset;

template <FormatId id>
inline Quad to_integers(Quad codes) {
    if constexpr (kFormat<id>.codes == Codes::kCodebook) {
        static constexpr auto table = byte_table<id, 64>(128);
        return _mm512_permutexvar_epi8(codes, _mm512_load_si512(table.at));
    } else {
        return codes;
    }
}

template <FormatId id>
struct Dot {
    Ints sum;

    static ALWAYS_INLINE Dot start(const int32_t* activation_sum) {
        if constexpr (kOffset<id> == 0) return {_mm512_setzero_si512()};
        constexpr int log2 = __builtin_ctz(kOffset<id> | 1 << 30);
        static_assert(kOffset<id> == 0 || kOffset<id> == 1 << log2);
        return {_mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(_mm512_set1_epi32(*activation_sum), log2))};
    }
    template <int quad>
    ALWAYS_INLINE void add(Quad w, Quad x) { sum = _mm512_dpbusd_epi32(sum, w, x); }
    ALWAYS_INLINE Ints finish() const { return sum; }
};

// ---- fp32 compute -----------------------------------------------------------------------------------------------

template <FormatId id>
constexpr float kFloatFactor = 1.0f;

// Byte b of every lane, moved to the top of the lane.
template <int b>
inline __m512i top_byte(Quad v) { return _mm512_slli_epi32(v, 24 - 8 * b); }

template <FormatId id, int b>
inline Floats float_of(Quad codes) {
    constexpr int bits = kFormat<id>.bits;
    const __m512i index = _mm512_srli_epi32(codes, 8 * b);  // the permutes below ignore all but the low bits
    if constexpr (bits <= 4) {
        static constexpr auto table = float_table<id, 16>();
        return _mm512_permutexvar_ps(index, _mm512_load_ps(table.at));
    } else if constexpr (bits == 5) {
        static constexpr auto table = float_table<id, 32>();
        return _mm512_permutex2var_ps(_mm512_load_ps(table.at), index, _mm512_load_ps(table.at + 16));
    } else if constexpr (id == FormatId::fp6) {  // a table of the 32 magnitudes, and the sign
        static constexpr auto table = float_table<id, 32>();
        const Floats magnitude = _mm512_permutex2var_ps(_mm512_load_ps(table.at), index, _mm512_load_ps(table.at + 16));
        const __m512i sign = _mm512_and_si512(_mm512_slli_epi32(codes, 26 - 8 * b), _mm512_set1_epi32(INT32_MIN));
        return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(magnitude), sign));
    } else if constexpr (id == FormatId::sym_int8) {
        const __m512i centred = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(top_byte<b>(centred), 24));
    } else {  // fp8: the fields where fp32 has them, then the difference of the exponent biases
        constexpr Minifloat f = id == FormatId::fp8_e4m3 ? kE4m3 : kE5m2;
        constexpr uint32_t fields = 0x80000000u | 0x7f000000u >> (8 - f.exponent_bits);
        const __m512i moved = _mm512_srai_epi32(top_byte<b>(codes), 8 - f.exponent_bits);
        const __m512i tiny = _mm512_and_si512(moved, _mm512_set1_epi32(static_cast<int>(fields)));
        constexpr uint32_t scale = (254u - f.bias) << 23;  // 2^(127 - bias)
        return _mm512_mul_ps(_mm512_castsi512_ps(tiny), _mm512_castsi512_ps(_mm512_set1_epi32(scale)));
    }
}

// The float at k of every row, for formats whose codes are floats.
template <FormatId id, int k>
inline Floats wide_float(const uint8_t* atom, int) {
    if constexpr (id == FormatId::fp32) return _mm512_loadu_ps(atom + kLine * k);
    if constexpr (id == FormatId::fp16) return load_halves(atom + kLine / 2 * k);
    const __m512i pair = load_quad(atom + kLine * (k / 2));
    return _mm512_castsi512_ps(k % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(pair, 16));
}

#include "shared/linear-inl.h"

// ---- activations ------------------------------------------------------------------------------------------------

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
        if (width == 1) {
            __builtin_memcpy(at, packed, kAtomK);
        } else {
            const auto* fours = reinterpret_cast<const uint8_t*>(packed);
            for (int i = 0; i < kQuads; i++) __builtin_memcpy(at + 4 * i * width, fours + 4 * i, 4);
        }
        scales[block * width] = scale;
        sums[block * width] = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
    }
}

}  // namespace

LinearKernels linear_kernels() {
    LinearKernels k{};
#define X(name, ...) add_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
    k.quantize_row = quantize_row;
    return k;
}

}  // namespace lowbit::avx512
