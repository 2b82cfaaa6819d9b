// The bf16 products of the AMX tier, compiled with the tile instructions in C++: for tests on CPUs without tiles.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "lowbit/codebooks.h"
#include "lowbit/kernels.h"
#include "lowbit/tiles.h"

namespace lowbit::amx_model {
namespace {

#include "amx_model/tile_ops-inl.h"

#include "shared/bf16_tiles-inl.h"

}  // namespace

LinearKernels bf16_kernels() { return all_bf16_tiles(); }

}  // namespace lowbit::amx_model
