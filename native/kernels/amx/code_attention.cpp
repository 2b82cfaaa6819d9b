// Attention over codes of the AMX tier: tiles for many rows of queries; for few rows the tier below does the work.

// gcc's own AVX-512 headers pass an uninitialised vector where nothing is merged (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "lowbit/code_tiles.h"
#include "lowbit/tiles.h"
#include "shared/macros.h"

namespace lowbit::amx {
namespace {

#include "amx/tile_ops-inl.h"

#include "shared/code_tiles-inl.h"

}  // namespace

const CodeTileKernels* code_tile_kernels() { return &kCodeTileKernels; }

}  // namespace lowbit::amx
