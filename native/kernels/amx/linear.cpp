// The linear kernels of the AMX tier: tiles for many rows of int8 compute; for few rows and in fp32 the tier below does the work.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "lowbit/codebooks.h"
#include "lowbit/kernels.h"
#include "lowbit/tiles.h"

namespace lowbit::amx {
namespace {

#include "amx/tile_ops-inl.h"

#include "shared/int8_tiles-inl.h"

}  // namespace

LinearKernels linear_kernels() { return all_tiles(); }

}  // namespace lowbit::amx
