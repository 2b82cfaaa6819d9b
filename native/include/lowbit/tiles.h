// What tile instructions (tier amx) are given besides rows and weights.
#pragma once
#include <cstdint>

namespace lowbit {

// The operand of ldtilecfg.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace lowbit
