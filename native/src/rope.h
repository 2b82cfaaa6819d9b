// Rotary positions: a table row is dim/2 cosines, then dim/2 sines.
#pragma once
#include <cmath>
#include <vector>

#include "lowbit/spec.h"

namespace lowbit {

inline void fill_rope(const std::vector<float>& inv_freq, float scale, int64_t position, float* table) {
    const size_t half = inv_freq.size();
    for (size_t d = 0; d < half; d++) {
        const float angle = static_cast<float>(position) * inv_freq[d];
        table[d] = std::cos(angle) * scale;
        table[half + d] = std::sin(angle) * scale;
    }
}

inline void rotate(const Rope& rope, const float* table, float* x) {
    const int64_t half = rope.dim / 2, step = rope.kind == RopeKind::half ? 1 : 2,
                  pair = rope.kind == RopeKind::half ? half : 1;
    const float *cos = table, *sin = table + half;
    for (int64_t i = 0; i < half; i++) {
        float &a = x[i * step], &b = x[i * step + pair];
        const float rotated = a * cos[i] - b * sin[i];
        b = b * cos[i] + a * sin[i];
        a = rotated;
    }
}

}  // namespace lowbit
