// int8 products for AVX-512 with VNNI and VBMI. vpdpbusd multiplies unsigned weights with signed activations; what was added
// to make the weights unsigned comes off at the start of the sum.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "avx512/linear.h"
#include "lowbit/codebooks.h"

namespace lowbit::avx512 {
namespace {

#include "shared/tables.h"

#include "avx512/lanes-inl.h"

#include "shared/linear-inl.h"

constexpr int int8_panels(int m) { return m <= 4 ? 4 : 2; }

template <FormatId id>
constexpr int kOffset = kFormat<id>.codes == Codes::kCodebook ? 128 : kFormat<id>.offset;

template <FormatId id>
inline Quad to_integers(Quad codes) {
    if constexpr (kFormat<id>.codes == Codes::kCodebook) return look_up<id, 128>(codes);
    return codes;
}

template <FormatId id>
struct Dot {
    Ints sum;

    static ALWAYS_INLINE Dot start(Ints activation_sum) {
        if constexpr (kOffset<id> == 0) return {_mm512_setzero_si512()};
        constexpr int log2 = __builtin_ctz(kOffset<id> | 1 << 30);
        static_assert(kOffset<id> == 0 || kOffset<id> == 1 << log2);
        return {_mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(activation_sum, log2))};
    }
    template <int quad>
    ALWAYS_INLINE void add(Quad w, Quad x) { sum = _mm512_dpbusd_epi32(sum, w, x); }
    ALWAYS_INLINE Ints finish(Ints) const { return sum; }
};

#include "shared/int8-inl.h"

constexpr int kTileRows = 8, kTileVectors = 2, kStripPanels = 2;  // three are 4-7 % slower: more sums to settle at once
constexpr int kIntegerBlockK = 768;  // 24 KB for two panels; 512: 3 to 5 % slower
#include "shared/many-inl.h"

template <FormatId id>
constexpr FormatId kLike = kFormat<id>.has_min ? FormatId::asym_int4 : kOffset<id> == 128 ? FormatId::sym_int8 : id;

#include "shared/int8_tile-inl.h"

#include "shared/int8_many-inl.h"

}  // namespace

void add_int8(LinearKernels& k) {
#define X(name, ...)                       \
    add_int8_format<FormatId::name>(k);    \
    add_int8_many_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
}

}  // namespace lowbit::avx512
