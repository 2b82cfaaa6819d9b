// Codes times bf16 activations by vdpbf16ps: fp6 and fp8, and others where int8 activations would lose too much.

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

#include "avx512/bf16_weights-inl.h"

struct Bf16Pairs : Bf16Weights {
    using Activations = __m512i;
    using Sum = Floats;

    static ALWAYS_INLINE Weights load_weights(const uint8_t* p) { return load_quad(p); }
    static ALWAYS_INLINE Activations activations(const uint16_t* x) { return broadcast_pair(x); }
    static ALWAYS_INLINE Floats add_product(Weights w, Activations x, Floats sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
    }
    static ALWAYS_INLINE Sum no_sum() { return zero(); }
    static ALWAYS_INLINE Floats total(Sum sum) { return sum; }
    static ALWAYS_INLINE float sum_of_values(const uint16_t* x, int count) {
        Floats sum = zero();
        for (int i = 0; i < count; i += 16) {
            const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
            sum = add(sum, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)));
        }
        return _mm512_reduce_add_ps(sum);
    }
};

constexpr int panels_of_floats(int m) { return m <= 4 ? 4 : 2; }
#include "shared/float-inl.h"

constexpr int kTileRows = 8, kTileVectors = 3, kStripPanels = 3;
#include "shared/many-inl.h"

#include "shared/float_many-inl.h"

template <FormatId id>
void add_format(LinearKernels& k) {
    if constexpr (kFormat<id>.codes != Codes::kFloat) {
        k.bf16[static_cast<int>(id)] = product<FloatProduct<Bf16Pairs, id>, id>;
        k.bf16_many[static_cast<int>(id)] = product_many<FloatMany<Bf16Pairs, id>, id>;
    }
}

}  // namespace

LinearKernels bf16_kernels() {
    LinearKernels k{};
    add_bf16_weights(k);
#define X(name, ...) add_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
    return k;
}

}  // namespace lowbit::avx512
