// Products with many rows of activations, included behind linear-inl.h. A strip of up to kStripPanels panels is unpacked into
// scratch, one block of k at a time (it stays in L1), and all rows are multiplied with it before the next block, in tiles of
// kTileRows rows x kTileVectors vectors whose sums stay in registers. Every output goes through the same operations in the same order as
// in linear-inl.h: results are equal to the last bit, whatever the number of rows.
// The including file provides kTileVectors, kStripPanels (2 or 3) and kTileRows, a divisor of the rows that stand together
// (kMaxKernelRows, for tiles kTileBlockRows). A Many (int8_many-inl.h, float_many-inl.h) provides
//   Rows, factor, kBlockK, unpack_atom(atom, to, line), tile<V>(strip, vector, rows, row, y, y_stride);
//   kWholeRows: there are no scales, and a sum goes over all k at once.

#include "shared/strips-inl.h"

// One block of k of a strip, unpacked. A line is the weights of all vectors for one step along k (4 k as bytes, 1 as floats).
struct Strip {
    const uint8_t* weights;  // [step along k][vector]
    const float* scales;     // [group of the block][vector][kLanes], then the minima of formats that have them
    const float* mins;
    float multiplier;
    float* sums;             // of a tile, see TileSums
    int line;                // bytes from line to line
    int vectors;
    int group_atoms;         // atoms per group
    int64_t first_atom, atoms;
    bool begins, ends;       // holds the first, the last atom of the rows
    bool per_row;            // one group that goes through all blocks: what tiles hand on in y is its sum so far
    bool pairs;              // of atoms are added up as integers: see sums_pairs(). A last atom's other half is what the scratch
                             // holds, times activations of zero

    int64_t unit_atoms() const { return pairs ? kActivationK / kAtomK : 1; }
    int64_t units(int64_t atoms) const { return pairs ? (atoms + 1) / 2 : atoms; }
};

// Sums of a tile while the registers hold those of an atom. `part` belongs to the current group, `total` to all before. They stand
// in the scratch: arrays of its own the compiler takes apart and copies about.
template <int V>
struct TileSums {
    static constexpr int kFloats = kTileRows * V * kLanes;
    static_assert(2 * kFloats * 4 <= kManySumBytes);
    float *part, *total;

    explicit TileSums(const Strip& s) : part(s.sums), total(s.sums + kFloats) {}
    static constexpr int at(int i, int v) { return (i * V + v) * kLanes; }

    // `last`: no tile follows whose y is worth fetching. rows: fewer than kTileRows where the kernel can do with fewer.
    void begin(const Strip& s, const float* y, int64_t y_stride, bool last, int rows = kTileRows) const {
        const int64_t ahead = last ? 0 : kTileRows * y_stride;
        NO_UNROLL for (int i = 0; i < rows; i++, y += y_stride)
            UNROLL for (int v = 0; v < V; v++) {
                const Floats handed_on = s.begins ? zero() : load(y + v * kLanes);
                store(total + at(i, v), s.per_row ? zero() : handed_on);
                if (s.per_row) store(part + at(i, v), handed_on);
                prefetch(reinterpret_cast<const uint8_t*>(y + ahead + v * kLanes));
            }
    }
    void end(const Strip& s, float* y, int64_t y_stride, int rows = kTileRows) const {
        const float* hand_on = s.per_row && !s.ends ? part : total;
        const float multiplier = s.ends ? s.multiplier : 1.0f;
        NO_UNROLL for (int i = 0; i < rows; i++, y += y_stride)
            UNROLL for (int v = 0; v < V; v++) store(y + v * kLanes, multiply(load(hand_on + at(i, v)), &multiplier));
    }
};

// Unpacks atoms [first, first + atoms) of each of P panels from `at` to scratch. fetch: and fetches what is unpacked a little later.
template <class Many, FormatId id, int P>
void unpack_strip(const Layout& l, const uint8_t* at, Strip& s, uint8_t* weights, float* scales, bool fetch) {
    constexpr bool scaled = kFormat<id>.codes != Codes::kFloat, has_min = kFormat<id>.has_min;
    constexpr int64_t atom_bytes = kAtomBytes<id>;
    const int64_t tile_atoms = l.groups_per_tile * s.group_atoms;
    float* mins = scales + (s.per_row ? 1 : s.atoms / s.group_atoms) * P * kPanelRows;
    s.weights = weights;
    s.scales = scales;
    s.mins = mins;
    s.line = Many::kLineBytes * P;
    s.vectors = P * kHalves;
    const int64_t first_tile = s.first_atom / tile_atoms, first_in_tile = s.first_atom % tile_atoms;
    for (int p = 0; p < P; p++, at += l.panel_bytes) {
        const uint8_t* tile = at + first_tile * l.tile_bytes;
        uint8_t* to = weights + p * Many::kLineBytes;
        float* scale = scales + p * kPanelRows;
        int64_t in_tile = first_in_tile, in_group = s.per_row ? in_tile : 0, half_line = in_tile && !s.per_row ? kLine / 2 : 0;
        for (int64_t a = 0; a < s.atoms; a++, to += Many::kAtomLines * s.line) {
            const uint8_t* atom = tile + in_tile * atom_bytes;
            Many::unpack_atom(atom, to, s.line);
            if (fetch) {  // past the end of a panel, in the panel that takes its place
                const int64_t left = at + l.panel_bytes - atom;
                const uint8_t* later = atom + kPrefetchBytes + (left > kPrefetchBytes ? 0 : (P - 1) * l.panel_bytes);
                for (int64_t line = 0; line < atom_bytes; line += kLine) prefetch(later + line);
            }
            in_tile++;
            if (++in_group == s.group_atoms) {
                const uint8_t* line = tile + tile_atoms * atom_bytes + half_line;
                for (int h = 0; h < kHalves && scaled; h++) {
                    store(scale + h * kLanes, load_halves(line + 2 * h * kLanes));
                    if (has_min) store(scale + (mins - scales) + h * kLanes, load_halves(line + kLine + 2 * h * kLanes));
                }
                scale += P * kPanelRows;
                in_group = 0;
                half_line = kLine / 2;
            }
            if (in_tile == tile_atoms) {
                tile += l.tile_bytes;
                in_tile = half_line = 0;
            }
        }
    }
}

template <class Many, FormatId id, int P>
void strip(const PackedView& w, int64_t panel, const typename Many::Rows& x, int64_t first_row, int64_t m, float* y,
           int64_t y_stride, uint8_t* scratch) {
    const Layout& l = w.layout;
    Strip s{};
    s.multiplier = w.multiplier * Many::factor;
    const int64_t all = l.k_padded / kAtomK;
    s.group_atoms = Many::kWholeRows ? static_cast<int>(all) : l.atoms_per_group();
    s.per_row = s.group_atoms > kManyGroup / kAtomK;
    s.pairs = sums_pairs(l);
    constexpr int64_t block = Many::kBlockK / kAtomK;
    const int64_t step = s.per_row ? block : block > s.group_atoms ? block / s.group_atoms * s.group_atoms : s.group_atoms;
    float* scales = reinterpret_cast<float*>(scratch);
    uint8_t* weights = scratch + kManyScaleBytes;
    s.sums = reinterpret_cast<float*>(scratch + kManyScratch - kManySumBytes);
    for (s.first_atom = 0; s.first_atom < all; s.first_atom += step) {
        s.atoms = all - s.first_atom < step ? all - s.first_atom : step;
        s.begins = s.first_atom == 0;
        s.ends = s.first_atom + s.atoms == all;
        // What is unpacked next, the same panels or those of the next strip, is fetched while the rows are multiplied; if they are few,
        // while it is unpacked, since a burst would hold up the loads behind it.
        const bool few = m < kTileRows;
        unpack_strip<Many, id, P>(l, w.panel(panel), s, weights, scales, few);
        const uint8_t* next = s.ends ? w.panel(panel + P) : w.panel(panel) + (s.first_atom + s.atoms) * l.panel_bytes / all;
        const int64_t bytes = s.atoms * l.panel_bytes / all + kLine, lines = few ? 0 : bytes / kLine * kTileRows / m + 1;
        int64_t fetched = 0;
        for (int64_t row = 0; row < m; row += kTileRows) {
            for (int64_t i = 0; i < lines && fetched < bytes; i++, fetched += kLine)
                UNROLL for (int p = 0; p < P; p++) prefetch(next + p * l.panel_bytes + fetched);
            float* to = y + row * y_stride + panel * kPanelRows;
            int v = 0;
            NO_UNROLL for (; v + kTileVectors <= P * kHalves; v += kTileVectors)
                Many::template tile<kTileVectors>(s, v, x, first_row + row, to + v * kLanes, y_stride);
            constexpr int rest = P * kHalves % kTileVectors;
            if constexpr (rest != 0) Many::template tile<rest>(s, v, x, first_row + row, to + v * kLanes, y_stride);
        }
    }
}

template <class Many, FormatId id>
void product_many(const PackedView& w, int64_t first_panel, int64_t panels, const typename Many::Rows& x, int64_t first_row,
                  int64_t m, float* y, int64_t y_stride, uint8_t* scratch) {
    for_strips<kStripPanels>(first_panel, panels, [&](int64_t panel, auto number) INLINE_LAMBDA {
        strip<Many, id, decltype(number)::value>(w, panel, x, first_row, m, y, y_stride, scratch);
    });
}
