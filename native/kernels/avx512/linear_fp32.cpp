// fp32 products for AVX-512.

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

#include "avx512/code_floats-inl.h"

constexpr int panels_of_floats(int m) { return m <= 4 ? 4 : 2; }

// The float at k of every row, for formats whose codes are floats.
template <FormatId id, int k>
inline Floats wide_float(const uint8_t* atom, int) {
    if constexpr (id == FormatId::fp32) return _mm512_loadu_ps(atom + kLine * k);
    if constexpr (id == FormatId::fp16) return load_halves(atom + kLine / 2 * k);
    const __m512i pair = load_quad(atom + kLine * (k / 2));
    return _mm512_castsi512_ps(k % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(pair, 16));
}

#include "shared/fp32-inl.h"

#include "shared/float-inl.h"

constexpr int kTileRows = 8, kTileVectors = 3, kStripPanels = 3;
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

}  // namespace lowbit::avx512
