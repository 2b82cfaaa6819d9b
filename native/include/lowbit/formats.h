// The format table: how a number format is stored and what its codes mean. The same rows stand in
// backend/lowbit/formats.py; a test holds the two equal. Nothing here branches on a device or an instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lowbit {

enum class Codes : uint8_t {
    kGrid,      // value = (code - offset) * scale [+ min]
    kCodebook,  // value = codebook[code] * scale
    kFloat,     // the code is the number itself (bf16, fp16, fp32): no groups, no scales
};

// name, id (on disk, never reused), bits per code, kind, grid offset, has a per-group minimum
#define LOWBIT_FORMATS(X)                         \
    X(sym_int3, 1, 3, Codes::kGrid, 4, false)     \
    X(sym_int4, 2, 4, Codes::kGrid, 8, false)     \
    X(asym_int4, 3, 4, Codes::kGrid, 0, true)     \
    X(sym_int5, 4, 5, Codes::kGrid, 16, false)    \
    X(asym_int5, 5, 5, Codes::kGrid, 0, true)     \
    X(sym_int8, 6, 8, Codes::kGrid, 128, false)   \
    X(nf3, 7, 3, Codes::kCodebook, 0, false)      \
    X(nf4, 8, 4, Codes::kCodebook, 0, false)      \
    X(fp4, 9, 4, Codes::kCodebook, 0, false)      \
    X(fp6, 10, 6, Codes::kCodebook, 0, false)     \
    X(fp8_e4m3, 11, 8, Codes::kCodebook, 0, false) \
    X(fp8_e5m2, 12, 8, Codes::kCodebook, 0, false) \
    X(fp16, 13, 16, Codes::kFloat, 0, false)      \
    X(bf16, 14, 16, Codes::kFloat, 0, false)      \
    X(fp32, 15, 32, Codes::kFloat, 0, false)

enum class FormatId : uint8_t {
#define X(name, id, bits, codes, offset, min) name = id,
    LOWBIT_FORMATS(X)
#undef X
};

struct Format {
    const char* name;
    FormatId id;
    int bits;
    Codes codes;
    int offset;
    bool has_min;
};

// nullptr when the id is not in the table.
constexpr const Format* find_format(int id);

inline constexpr Format kFormats[] = {
#define X(name, id, bits, codes, offset, min) {#name, FormatId::name, bits, codes, offset, min},
    LOWBIT_FORMATS(X)
#undef X
};
inline constexpr int kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);

constexpr const Format* find_format(int id) {
    for (const Format& f : kFormats)
        if (static_cast<int>(f.id) == id) return &f;
    return nullptr;
}
constexpr const Format& format_of(FormatId id) { return *find_format(static_cast<int>(id)); }

// ---- the packed layout "P16K" (docs/formats.md has the pictures) ---------------------------------------------
// panel  16 consecutive rows (output features); panels follow each other, rows are padded to 16.
// atom   16 rows x 32 k, the code planes of one panel for 32 consecutive k. Lane r (4 bytes) of every 64-byte line
//        belongs to row r, so an atom is whole cache lines and two unpacked atoms are one AMX int8 B tile.
//          8-bit plane, 8 lines: line j, byte 4r+b                 = code of k = 4j+b
//          4-bit plane, 4 lines: line j, byte 4r+b, low | high     = k = 8j+b | 8j+4+b
//          2-bit plane, 2 lines: line j, byte 4r+b, bits 2i..2i+1  = k = 16j+4i+b
//          1-bit plane, 1 line:  eight little-endian 64-bit masks; mask j, bit 4r+b = k = 4j+b
//          bf16, 16 lines: line j, lane r = k 2j (low half), 2j+1 (high half)
//          fp16, 16 lines: line j = 16 rows of k = 2j, then 16 rows of k = 2j+1
//          fp32, 32 lines: line k = 16 rows
//        A code of 3, 5, 6 bits is two planes, low bits first: 3 = 2-bit + 1-bit, 5 = 4-bit + 1-bit, 6 = 4-bit + 2-bit.
// group  group_size consecutive k that share a scale: group_size/32 atoms. group_size 0 on disk means per row: one group.
// tile   two groups (one when per row), their atoms in k order, then one 64-byte line of fp16 scales
//        (16 rows of group 0, 16 rows of group 1), then for formats with a minimum one such line of fp16 minima.
//        Float formats have neither groups nor scale lines: a tile is an atom.
// k is padded to whole tiles, with the code nearest to zero; activations are padded with zeros, so padding adds nothing.
// The scales of a tensor are multiplied by one fp32 multiplier (a power of two), so fp16 neither over- nor underflows.
inline constexpr int kPanelRows = 16;
inline constexpr int kAtomK = 32;
inline constexpr int kLine = 64;

struct Layout {
    int64_t rows, k;           // logical [out_features, in_features]
    int group_size;            // k per group; k_padded when per row; kAtomK for float formats (no scales)
    int groups_per_tile;       // 2, or 1 when per row and for float formats
    int64_t panels, tiles;     // tiles per panel
    int64_t k_padded;
    int64_t atom_bytes, tile_bytes, panel_bytes, bytes;

    constexpr int64_t tile_k() const { return static_cast<int64_t>(group_size) * groups_per_tile; }
    constexpr int atoms_per_group() const { return group_size / kAtomK; }
};

// group_size: 32, 64, 128 ... (a multiple of 32) or 0 for one group per row. Ignored by float formats.
constexpr Layout layout_of(const Format& f, int64_t rows, int64_t k, int group_size) {
    Layout l{};
    l.rows = rows;
    l.k = k;
    const bool scaled = f.codes != Codes::kFloat;
    const int64_t k_atoms = (k + kAtomK - 1) / kAtomK * kAtomK;
    if (!scaled || group_size == 0) {
        l.groups_per_tile = 1;
        l.group_size = scaled ? static_cast<int>(k_atoms) : kAtomK;
    } else {
        l.groups_per_tile = 2;
        l.group_size = group_size;
    }
    const int64_t tile_k = l.tile_k();
    l.tiles = tile_k ? (k + tile_k - 1) / tile_k : 0;
    l.k_padded = l.tiles * tile_k;
    l.panels = (rows + kPanelRows - 1) / kPanelRows;
    l.atom_bytes = static_cast<int64_t>(kPanelRows) * kAtomK * f.bits / 8;
    l.tile_bytes = l.atom_bytes * (tile_k / kAtomK) + (scaled ? kLine : 0) + (f.has_min ? kLine : 0);
    l.panel_bytes = l.tiles * l.tile_bytes;
    l.bytes = l.panels * l.panel_bytes;
    return l;
}

}  // namespace lowbit
