// int8 products for AVX2 without VNNI. vpmaddubsw saturates its int16 pair sums, so small codes are summed in int16 as long as that
// is exact and larger ones go to int32 at once. Where the CPU has AVX-VNNI, linear_vnni.cpp takes over.
#include <immintrin.h>

#include "avx2/linear.h"
#include "lowbit/codebooks.h"

namespace lowbit::avx2 {
namespace {

#include "shared/tables.h"

#include "avx2/lanes-inl.h"

#include "shared/linear-inl.h"

// Signed weights w are multiplied as |w| (unsigned) with x * sign(w); grids of up to 5 bits stay unsigned, offset apart.
template <FormatId id>
constexpr bool kSigned = kFormat<id>.codes == Codes::kCodebook || kFormat<id>.bits == 8;

template <FormatId id>
consteval int largest_weight() {
    if (!kSigned<id>) return (1 << kFormat<id>.bits) - 1;
    if (kFormat<id>.codes == Codes::kGrid) return kFormat<id>.offset;
    int largest = 0;
    for (const signed char code : kInteger<id>.code) largest = code > largest ? code : -code > largest ? -code : largest;
    return largest;
}

template <FormatId id>
inline Quad to_integers(Quad codes) {
    if constexpr (kFormat<id>.codes == Codes::kCodebook) return look_up<id, 0>(codes);
    if constexpr (kSigned<id>) return _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return codes;
}

template <FormatId id>
struct Dot {
    // Quads whose products fit in int16 together: each adds two of at most 127 * largest_weight.
    static constexpr int fits = 32767 / (2 * 127 * largest_weight<id>());
    static constexpr int run = fits >= 8 ? 8 : fits >= 4 ? 4 : 1;
    static_assert(fits >= 1);
    Ints sum, pairs;

    static ALWAYS_INLINE Dot start(Ints) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    template <int quad>
    ALWAYS_INLINE void add(Quad w, Quad x) {
        const __m256i two = kSigned<id> ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                                        : _mm256_maddubs_epi16(w, x);
        pairs = quad % run == 0 ? two : _mm256_add_epi16(pairs, two);
        if constexpr (quad % run == run - 1) {
            const Ints fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            sum = quad < run ? fours : _mm256_add_epi32(sum, fours);
        }
    }
    ALWAYS_INLINE Ints finish(Ints activation_sum) const {
        if constexpr (kSigned<id> || kFormat<id>.offset == 0) return sum;
        return _mm256_add_epi32(sum, minus_offset<kFormat<id>.offset>(activation_sum));
    }
};

#include "shared/int8-inl.h"

constexpr int kFewRows = 4;
template <FormatId id, int m>
constexpr int kFewPanels = 2;
template <FormatId id, int m>
constexpr bool kFewUnpacks = m == 8 && (kSigned<id> || kFormat<id>.bits != 4);
#include "shared/int8_few-inl.h"

constexpr int kTileRows = 2, kTileVectors = 3, kStripPanels = 3;
constexpr int kIntegerBlockK = 512;  // 24 KB for three panels
#include "shared/many-inl.h"

// Formats of large signed weights all go to int32 at once.
template <FormatId id>
constexpr FormatId kLike = kSigned<id> && Dot<id>::run == 1 ? FormatId::sym_int8 : id;

#include "shared/int8_tile-inl.h"

#include "shared/int8_many-inl.h"

}  // namespace

void add_int8(LinearKernels& k) {
#define X(name, ...)                       \
    add_int8_few_format<FormatId::name>(k);  \
    add_int8_many_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
}

}  // namespace lowbit::avx2
