// Attention over codes of the AMX tier, compiled with the tile instructions in C++: for tests on CPUs without tiles.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "lowbit/code_tiles.h"
#include "lowbit/tiles.h"
#include "shared/macros.h"

namespace lowbit::amx_model {
namespace {

#include "amx_model/tile_ops-inl.h"

#include "shared/code_tiles-inl.h"

}  // namespace

const CodeTileKernels* code_tile_kernels() { return &kCodeTileKernels; }

}  // namespace lowbit::amx_model
