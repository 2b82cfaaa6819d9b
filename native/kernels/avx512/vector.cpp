// Element-wise and attention kernels for AVX-512: the primitives; the loops are in shared/vector-inl.h.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "lowbit/kernels.h"
#include "shared/macros.h"

namespace lowbit::avx512 {
namespace {

#include "avx512/floats-inl.h"

#include "shared/vector-inl.h"

// rows[i][j] becomes rows[j][i]: 4 x 4 inside 128-bit lanes, then the lanes.
inline void transpose(Floats (&rows)[16]) {
    Floats quads[16];
    UNROLL for (int g = 0; g < 16; g += 4) {
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(rows[g], rows[g + 1])), b = _mm512_castps_pd(_mm512_unpackhi_ps(rows[g], rows[g + 1])),
                      c = _mm512_castps_pd(_mm512_unpacklo_ps(rows[g + 2], rows[g + 3])), d = _mm512_castps_pd(_mm512_unpackhi_ps(rows[g + 2], rows[g + 3]));
        quads[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        quads[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        quads[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        quads[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    UNROLL for (int j = 0; j < 4; j++) {
        const Floats even_low = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x88), odd_low = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xdd),
                     even_high = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x88), odd_high = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        rows[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        rows[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
        rows[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
}

constexpr int kTogether = 8;
#include "shared/query_lanes-inl.h"

}  // namespace

VectorKernels vector_kernels() { return table(); }
QueryLaneKernels query_lane_kernels() { return kQueryLaneKernels; }

}  // namespace lowbit::avx512
