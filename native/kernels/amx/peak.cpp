#include <immintrin.h>

#include "lowbit/peak.h"
#include "lowbit/tiles.h"

namespace lowbit::amx {
namespace {

#include "amx/tile_ops-inl.h"

}  // namespace

int64_t peak_int8(int64_t rounds) {
    tile_configure(&kWholeTiles);
    for (int64_t r = 0; r < rounds; r++) {
        tile_multiply<0, 4, 6>();
        tile_multiply<1, 4, 7>();
        tile_multiply<2, 5, 6>();
        tile_multiply<3, 5, 7>();
    }
    tile_release();
    return rounds * 4 * 16 * 16 * 64;
}

int64_t peak_bf16(int64_t rounds) {
    tile_configure(&kWholeTiles);
    for (int64_t r = 0; r < rounds; r++) {
        tile_multiply_bf16<0, 4, 6>();
        tile_multiply_bf16<1, 4, 7>();
        tile_multiply_bf16<2, 5, 6>();
        tile_multiply_bf16<3, 5, 7>();
    }
    tile_release();
    return rounds * 4 * 16 * 16 * 32;
}

}  // namespace lowbit::amx
