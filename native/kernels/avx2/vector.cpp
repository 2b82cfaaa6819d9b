// Element-wise and attention kernels for AVX2 with FMA and F16C: the primitives; the loops are in shared/vector-inl.h.
#include <immintrin.h>

#include "lowbit/kernels.h"
#include "shared/macros.h"

namespace lowbit::avx2 {
namespace {

#include "avx2/floats-inl.h"

#include "shared/vector-inl.h"

// rows[i][j] becomes rows[j][i]: 4 x 4 inside 128-bit lanes, then the lanes.
inline void transpose(Floats (&rows)[8]) {
    Floats quads[8];
    UNROLL for (int g = 0; g < 8; g += 4) {
        const Floats a = _mm256_unpacklo_ps(rows[g], rows[g + 1]), b = _mm256_unpackhi_ps(rows[g], rows[g + 1]),
                     c = _mm256_unpacklo_ps(rows[g + 2], rows[g + 3]), d = _mm256_unpackhi_ps(rows[g + 2], rows[g + 3]);
        quads[g] = _mm256_shuffle_ps(a, c, 0x44);
        quads[g + 1] = _mm256_shuffle_ps(a, c, 0xee);
        quads[g + 2] = _mm256_shuffle_ps(b, d, 0x44);
        quads[g + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    UNROLL for (int j = 0; j < 4; j++) {
        rows[j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20);
        rows[4 + j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31);
    }
}

constexpr int kTogether = 3;
#include "shared/query_lanes-inl.h"

}  // namespace

VectorKernels vector_kernels() { return table(); }
QueryLaneKernels query_lane_kernels() { return kQueryLaneKernels; }

}  // namespace lowbit::avx2
