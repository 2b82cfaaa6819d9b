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

// All eight tiles of the largest size.
constexpr TileConfig kWholeTiles = [] {
    TileConfig config{};
    config.palette = 1;
    for (int t = 0; t < 8; t++) config.colsb[t] = 64, config.rows[t] = 16;
    return config;
}();

}  // namespace lowbit
