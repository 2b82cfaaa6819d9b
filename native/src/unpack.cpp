// The way back from the packed layout: exact values of rows.
#include <algorithm>

#include "lowbit/half.h"
#include "lowbit/pack.h"
#include "code_values.h"
#include "planes.h"

namespace lowbit {
namespace {

uint16_t half_at(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return h;
}

void read_scaled_row(const PackedView& w, const CodeValues& values, int64_t row, float* out) {
    const Layout& l = w.layout;
    const int lane = static_cast<int>(row % kPanelRows), bits = w.format->bits;
    const uint8_t* tile = w.panel(row / kPanelRows);
    const int64_t atoms = l.tile_k() / kAtomK;
    int64_t k = 0;
    for (int64_t t = 0; t < l.tiles; t++, tile += l.tile_bytes) {
        const uint8_t* scales = tile + atoms * l.atom_bytes;
        for (int64_t a = 0; a < atoms && k < l.k; a++, k += kAtomK) {
            const int64_t at = 2 * (a / l.atoms_per_group() * kPanelRows + lane);
            const float scale = half_to_float(half_at(scales + at)) * w.multiplier;
            const float min = w.format->has_min ? half_to_float(half_at(scales + kLine + at)) * w.multiplier : 0.0f;
            uint8_t codes[kAtomK];
            planes::unpack_atom_row(bits, tile + a * l.atom_bytes, lane, codes);
            const int64_t n = std::min<int64_t>(kAtomK, l.k - k);
            if (w.format->has_min)
                for (int64_t i = 0; i < n; i++) out[k + i] = values.value[codes[i]] * scale + min;
            else
                for (int64_t i = 0; i < n; i++) out[k + i] = values.value[codes[i]] * scale;
        }
    }
}

void read_float_row(const PackedView& w, int64_t row, float* out) {
    const int64_t lane = row % kPanelRows, k = w.layout.k;
    const uint8_t* panel = w.panel(row / kPanelRows);
    switch (w.format->id) {
        case FormatId::fp32:
            for (int64_t i = 0; i < k; i++) std::memcpy(out + i, panel + i * kLine + 4 * lane, 4);
            return;
        case FormatId::bf16:
            for (int64_t i = 0; i < k; i++) out[i] = bf16_to_float(half_at(panel + i / 2 * kLine + 4 * lane + 2 * (i % 2)));
            return;
        default:
            for (int64_t i = 0; i < k; i++) out[i] = half_to_float(half_at(panel + i * kLine / 2 + 2 * lane));
    }
}

void read_packed_row(const PackedView& w, const CodeValues& values, int64_t row, float* out) {
    if (w.format->codes == Codes::kFloat)
        read_float_row(w, row, out);
    else
        read_scaled_row(w, values, row, out);
}

}  // namespace

void dequantize(ThreadPool& pool, const PackedView& w, int64_t first_row, int64_t count, float* out, int64_t stride) {
    const CodeValues values(*w.format);
    pool.run([&](Team& team) {
        const Team::Range rows = team.slice(count);
        for (int64_t i = rows.begin; i < rows.end; i++) read_packed_row(w, values, first_row + i, out + i * stride);
    });
}

void gather_rows(const PackedView& w, const int32_t* ids, int64_t n, float* out, int64_t stride) {
    const CodeValues values(*w.format);
    for (int64_t i = 0; i < n; i++) read_packed_row(w, values, ids[i], out + i * stride);
}

}  // namespace lowbit
