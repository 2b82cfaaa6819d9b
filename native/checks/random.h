#pragma once
#include <cstdint>

struct Random {
    uint64_t state = 1;

    uint32_t bits() {  // xorshift64*
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return static_cast<uint32_t>(state * 0x2545f4914f6cdd1dull >> 32);
    }
    float value() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-31f; }  // -1 ... 1
};
