// All products with activations rounded to bf16, in tiles: the body of the amx tier's linear_bf16.cpp and of its model's, which differ in
// their tile_ops-inl.h alone. One instruction sums the products of up to 16 rows with 16 outputs over an atom, 32 k. Sums stay in a tile
// to the end of a group or block; few rows fill a part of the tiles, so that a row's result is the same whatever shares its pass.

#include "shared/tables.h"

#include "avx512/lanes-inl.h"

#include "shared/linear-inl.h"

#include "avx512/code_floats-inl.h"

#include "avx512/bf16_weights-inl.h"

constexpr int kTileRows = kTileBlockRows, kTileVectors = 2, kStripPanels = 2;
#include "shared/many-inl.h"

#include "shared/float_many-inl.h"

// Tile registers: sums 0 and 1, activations 4, weights 6 and 7.
inline void configure_bf16_tiles(int rows) {
    TileConfig config{};
    config.palette = 1;
    for (int t : {0, 1, 4}) config.rows[t] = static_cast<uint8_t>(rows), config.colsb[t] = kLine;
    for (int t : {6, 7}) config.rows[t] = kAtomK / 2, config.colsb[t] = kLine;
    tile_configure(&config);
}

// Sums of up to kTileRows rows over atoms of one group, for V panels.
template <int V>
struct alignas(kLine) Bf16Sums {
    float at[kTileRows][V * kPanelRows];
};

template <int V>
ALWAYS_INLINE void multiply_atoms(const uint16_t* x, int64_t x_stride, const uint8_t* weights, int line, int64_t atoms, Bf16Sums<V>& sums) {
    static_assert(V <= 2);
    tile_zero<0>();
    if constexpr (V == 2) tile_zero<1>();
    for (int64_t a = 0; a < atoms; a++, x += kAtomK, weights += kAtomK / 2 * line) {
        tile_load<4>(x, x_stride * 2);
        tile_load<6>(weights, line);
        tile_multiply_bf16<0, 4, 6>();
        if constexpr (V == 2) {
            tile_load<7>(weights + kLine, line);
            tile_multiply_bf16<1, 4, 7>();
        }
    }
    tile_store<0>(sums.at[0], V * kLine);
    if constexpr (V == 2) tile_store<1>(sums.at[0] + kPanelRows, V * kLine);
}

// Up to kTileRows rows from `row`, which is as many as the tiles are configured for, times V panels of a strip.
template <bool scaled, bool has_min, int V>
__attribute__((noinline)) void bf16_tile(const Strip& s, int vector, const HalfRows& x, int64_t row, float* y, int64_t y_stride) {
    const int rows = static_cast<int>(x.m - row < kTileRows ? x.m - row : kTileRows);
    const uint16_t* values = x.data + row * x.stride;
    const uint8_t* weights = s.weights + vector * kLine;
    const float *group_scales = s.scales + vector * kLanes, *group_mins = s.mins + vector * kLanes;
    const auto in_group = [&](int64_t a) { return s.per_row ? s.first_atom + a : a % s.group_atoms; };
    const auto run_from = [&](int64_t a) {
        const int64_t of_group = s.group_atoms - in_group(a), of_block = s.atoms - a;
        return of_group < of_block ? of_group : of_block;
    };

    Bf16Sums<V> sums[2];
    const auto multiply_run = [&](int64_t a, int64_t count, int side) {
        if (count > 0)
            multiply_atoms<V>(values + (s.first_atom + a) * kAtomK, x.stride, weights + a * (kAtomK / 2) * s.line, s.line, count, sums[side]);
    };
    const TileSums<V> t(s);
    t.begin(s, y, y_stride, row + kTileRows >= x.m, rows);
    const auto settle = [&](int64_t a, int64_t count, int side) {
        const bool opens = in_group(a) == 0, closes = in_group(a) + count == s.group_atoms;
        with_ends(opens, closes, [&](auto is_first, auto is_last) INLINE_LAMBDA {
            constexpr bool opens = decltype(is_first)::value, closes = decltype(is_last)::value;
            const int64_t first_k = (s.first_atom + a + count - s.group_atoms) * kAtomK;  // of the group that closes
            NO_UNROLL for (int i = 0; i < rows; i++) {
                [[maybe_unused]] float x_sum = 0;
                if constexpr (closes && has_min)
                    x_sum = Bf16Weights::sum_of_values(values + i * x.stride + first_k, static_cast<int>(s.group_atoms * kAtomK));
                UNROLL for (int v = 0; v < V; v++) {
                    float *part = t.part + t.at(i, v), *total = t.total + t.at(i, v);
                    Floats p = load(sums[side].at[i] + v * kPanelRows);
                    if constexpr (!opens) p = add(load(part), p);
                    if constexpr (closes) {
                        Floats all = load(total);
                        all = scaled ? fma(p, load(group_scales + v * kLanes), all) : add(all, p);
                        if constexpr (has_min) all = fma(load(group_mins + v * kLanes), broadcast(&x_sum), all);
                        store(total, all);
                    } else {
                        store(part, p);
                    }
                }
            }
            if constexpr (closes) {
                group_scales += s.vectors * kLanes;
                group_mins += s.vectors * kLanes;
            }
        });
    };
    // The tiles of a run are under way while the sums of the one before are settled.
    int64_t first = 0, count = run_from(0);
    multiply_run(first, count, 0);
    for (int side = 0; first < s.atoms; side ^= 1) {
        const int64_t next = first + count, next_count = next < s.atoms ? run_from(next) : 0;
        multiply_run(next, next_count, side ^ 1);
        settle(first, count, side);
        first = next, count = next_count;
    }
    t.end(s, y, y_stride, rows);
}

template <FormatId id>
struct Bf16Tiles : FloatMany<Bf16Weights, id> {
    static constexpr int kBlockK = 512;  // of a strip: 32 KB for two panels
    static constexpr bool kWholeRows = kFormat<id>.codes == Codes::kFloat;

    template <int V>
    static ALWAYS_INLINE void tile(const Strip& s, int vector, const HalfRows& x, int64_t row, float* y, int64_t y_stride) {
        bf16_tile<kFormat<id>.codes != Codes::kFloat, kFormat<id>.has_min, V>(s, vector, x, row, y, y_stride);
    }
};

template <FormatId id>
void many_rows(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int64_t m, float* y,
               int64_t y_stride, uint8_t* scratch) {
    configure_bf16_tiles(kTileRows);
    product_many<Bf16Tiles<id>, id>(w, first_panel, panels, x, first_row, m, y, y_stride, scratch);
    tile_release();
}

template <FormatId id>
void few_rows(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int m, float* y,
              int64_t y_stride) {
    alignas(kLine) uint8_t scratch[kManyScratch];
    configure_bf16_tiles(m);
    const HalfRows up_to{x.data, x.stride, first_row + m};
    product_many<Bf16Tiles<id>, id>(w, first_panel, panels, up_to, first_row, m, y, y_stride, scratch);
    tile_release();
}

template <FormatId id>
void add_bf16_format(LinearKernels& k) {
    if constexpr (id != FormatId::fp16 && id != FormatId::fp32) {
        k.bf16[static_cast<int>(id)] = few_rows<id>;
        k.bf16_many[static_cast<int>(id)] = many_rows<id>;
    }
}

LinearKernels all_bf16_tiles() {
    LinearKernels k{};
#define X(name, ...) add_bf16_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
    return k;
}
