// The linear kernels of the AMX tier: tiles for many rows; for few rows and in fp32 the tier below does the work.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "lowbit/codebooks.h"
#include "lowbit/kernels.h"

namespace lowbit::amx {
namespace {

#include "amx/tile_ops-inl.h"

#include "shared/tables.h"

#include "avx512/lanes-inl.h"

#include "shared/linear-inl.h"

#include "shared/tiles-inl.h"

}  // namespace

LinearKernels linear_kernels() {
    LinearKernels k{};
    k.tiles = all_tiles();
    return k;
}

}  // namespace lowbit::amx
