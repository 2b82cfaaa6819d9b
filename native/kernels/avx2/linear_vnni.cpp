// int8 products of the AVX2 tier where the CPU has AVX-VNNI: one 256-bit vpdpbusd per half quad. This file alone is compiled
// with -mavxvnni; nothing in it may run before the feature bit was seen.
#include <immintrin.h>

#include "avx2/linear.h"
#include "lowbit/codebooks.h"

namespace lowbit::avx2 {
namespace {

#include "shared/tables.h"

#include "avx2/lanes-inl.h"

#include "shared/linear-inl.h"

// vpdpbusd multiplies unsigned weights; what was added to make them so comes off at the start of the sum.
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

    static ALWAYS_INLINE Dot start(Ints activation_sum) { return {minus_offset<kOffset<id>>(activation_sum)}; }
    template <int>
    ALWAYS_INLINE void add(Quad w, Quad x) { sum = _mm256_dpbusd_avx_epi32(sum, w, x); }
    ALWAYS_INLINE Ints finish(Ints) const { return sum; }
};

#include "shared/int8-inl.h"

constexpr int kFewRows = 4;
template <FormatId id>
constexpr bool kTwoPlanes = kFormat<id>.bits == 3 || kFormat<id>.bits == 5;
template <FormatId id, int m>  // 4 bits are unpacked in registers, which are not enough for three panels; 8 rows do it twice
constexpr int kFewPanels = kFormat<id>.bits == 4 && m == 4 ? 2 : 3;
template <FormatId id, int m>
constexpr bool kFewUnpacks = kTwoPlanes<id> || (kFormat<id>.bits == 4 && kFormat<id>.codes == Codes::kCodebook && m == 8);
#include "shared/int8_few-inl.h"

constexpr int kTileRows = 4, kTileVectors = 3, kStripPanels = 3;
constexpr int kIntegerBlockK = 512;  // 24 KB for three panels
#include "shared/many-inl.h"

template <FormatId id>
constexpr FormatId kLike = kFormat<id>.has_min ? FormatId::asym_int4 : kOffset<id> == 128 ? FormatId::sym_int8 : id;

#include "shared/int8_tile-inl.h"

#include "shared/int8_many-inl.h"

}  // namespace

void add_int8_vnni(LinearKernels& k) {
#define X(name, ...)                       \
    add_int8_few_format<FormatId::name>(k);  \
    add_int8_many_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
}

}  // namespace lowbit::avx2
