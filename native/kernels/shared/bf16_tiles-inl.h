// All products with activations rounded to bf16, in tiles: the body of the amx tier's linear_bf16.cpp and of its model's, which differ in
// their tile_ops-inl.h alone. One instruction sums the products of up to 16 rows with 16 outputs over an atom, 32 k: those of even and of
// odd k apart, each in order, then both together, which it adds to what the tile holds (Intel's manual, TDPBF16PS). Up to kVectorRows rows
// are summed in that order by FMA, which takes weights as they come from memory, where tiles need them unpacked: a row's result is the
// same whatever shares its pass, but for subnormal numbers, which are zero in tiles alone.

#include "shared/tables.h"

#include "avx512/lanes-inl.h"

#include "shared/linear-inl.h"

#include "avx512/code_floats-inl.h"

#include "avx512/bf16_weights-inl.h"

constexpr int kTileRows = kTileBlockRows, kTileVectors = 2, kStripPanels = 2;
#include "shared/many-inl.h"

#include "shared/float_many-inl.h"

// ---- few rows -------------------------------------------------------------------------------------------------------

constexpr int kVectorRows = 4;

struct Bf16Fma : Bf16Weights {
    struct Both {  // for even and odd k
        Floats even, odd;
    };
    using Activations = Both;
    using Sum = Both;

    static ALWAYS_INLINE Both split(__m512i pairs) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
    }
    static ALWAYS_INLINE Activations activations(const uint16_t* x) { return split(broadcast_pair(x)); }
    static ALWAYS_INLINE Sum add_product(Weights w, Activations x, Sum sum) {
        const Both weights = split(w);
        return {fma(weights.even, x.even, sum.even), fma(weights.odd, x.odd, sum.odd)};
    }
    static ALWAYS_INLINE Sum no_sum() { return {zero(), zero()}; }
    static ALWAYS_INLINE Floats total(Sum sum) { return add(sum.even, sum.odd); }
    // As products with ones.
    static float sum_of_values(const uint16_t* x, int count) {
        const auto value = [&](int i) { return __builtin_bit_cast(float, static_cast<uint32_t>(x[i]) << 16); };
        float sum = 0;
        for (int begin = 0; begin < count; begin += kAtomK) {
            float even = 0, odd = 0;
            for (int i = begin; i < begin + kAtomK; i += 2) even += value(i), odd += value(i + 1);
            sum += even + odd;
        }
        return sum;
    }
};

constexpr int panels_of_floats(int m) { return m <= 2 ? 4 : 2; }  // two sums per row and panel
#include "shared/float-inl.h"

// ---- tiles ----------------------------------------------------------------------------------------------------------

// Tile registers: sums 0 and 1, sums of activations 2, activations 4, ones 5, weights 6 and 7.
inline void configure_bf16_tiles(int rows) {
    TileConfig config{};
    config.palette = 1;
    for (int t : {0, 1, 2, 4}) config.rows[t] = static_cast<uint8_t>(rows), config.colsb[t] = kLine;
    for (int t : {5, 6, 7}) config.rows[t] = kAtomK / 2, config.colsb[t] = kLine;
    tile_configure(&config);
}

// Sums of up to kTileRows rows for V panels.
template <int V>
struct alignas(kLine) Bf16Sums {
    float at[kTileRows][V * kPanelRows];
};

// Goes on with the sums at `from` (null: begins), over atoms.
template <int V>
ALWAYS_INLINE void multiply_atoms(const uint16_t* x, int64_t x_stride, const uint8_t* weights, int line, int64_t atoms, const float* from,
                                  float* to) {
    static_assert(V <= 2);
    if (from) {
        tile_load<0>(from, V * kLine);
        if constexpr (V == 2) tile_load<1>(from + kPanelRows, V * kLine);
    } else {
        tile_zero<0>();
        if constexpr (V == 2) tile_zero<1>();
    }
    for (int64_t a = 0; a < atoms; a++, x += kAtomK, weights += kAtomK / 2 * line) {
        tile_load<4>(x, x_stride * 2);
        tile_load<6>(weights, line);
        tile_multiply_bf16<0, 4, 6>();
        if constexpr (V == 2) {
            tile_load<7>(weights + kLine, line);
            tile_multiply_bf16<1, 4, 7>();
        }
    }
    tile_store<0>(to, V * kLine);
    if constexpr (V == 2) tile_store<1>(to + kPanelRows, V * kLine);
}

// Sums of activations, each in all lanes.
inline void sum_activations(const uint16_t* x, int64_t x_stride, int64_t atoms, Bf16Sums<1>& sums) {
    alignas(kLine) static constexpr auto ones = [] {
        Table<uint16_t, kLine / 2> line{};
        for (uint16_t& one : line.at) one = 0x3f80;
        return line;
    }();
    tile_zero<2>();
    tile_load<5>(ones.at, 0);  // the same line 16 times
    for (int64_t a = 0; a < atoms; a++, x += kAtomK) {
        tile_load<4>(x, x_stride * 2);
        tile_multiply_bf16<2, 4, 5>();
    }
    tile_store<2>(sums.at[0], kLine);
}

// Up to kTileRows rows from `row`, which is as many as the tiles are configured for, times V panels of a strip.
template <bool scaled, bool has_min, int V>
__attribute__((noinline)) void bf16_tile(const Strip& s, int vector, const HalfRows& x, int64_t row, float* y, int64_t y_stride) {
    const int rows = static_cast<int>(x.m - row < kTileRows ? x.m - row : kTileRows);
    const uint16_t* values = x.data + row * x.stride;
    const uint8_t* weights = s.weights + vector * kLine;
    const float *group_scales = s.scales + vector * kLanes, *group_mins = s.mins + vector * kLanes;

    // A run are the atoms that a group has in this block.
    const auto in_group = [&](int64_t a) { return s.per_row ? s.first_atom + a : a % s.group_atoms; };
    const auto length = [&](int64_t a) {
        const int64_t of_group = s.group_atoms - in_group(a), of_block = s.atoms - a;
        return of_group < of_block ? of_group : of_block;
    };
    const TileSums<V> t(s);
    t.begin(s, y, y_stride, row + kTileRows >= x.m, rows);
    Bf16Sums<V> sums[2];
    Bf16Sums<1> x_sums[2];
    const auto multiply_run = [&](int64_t a, int64_t count, int side) {
        const bool opens = in_group(a) == 0, closes = in_group(a) + count == s.group_atoms;
        multiply_atoms<V>(values + (s.first_atom + a) * kAtomK, x.stride, weights + a * (kAtomK / 2) * s.line, s.line, count,
                          opens ? nullptr : t.part, closes ? sums[side].at[0] : t.part);
        if (has_min && closes)
            sum_activations(values + (s.first_atom + a + count - s.group_atoms) * kAtomK, x.stride, s.group_atoms, x_sums[side]);
    };
    const auto settle = [&](int side) {
        NO_UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int v = 0; v < V; v++) {
                float* total = t.total + t.at(i, v);
                const Floats sum = load(sums[side].at[i] + v * kPanelRows);
                Floats all = load(total);
                all = scaled ? fma(sum, load(group_scales + v * kLanes), all) : add(all, sum);
                if constexpr (has_min) all = fma(load(group_mins + v * kLanes), load(x_sums[side].at[i]), all);
                store(total, all);
            }
        group_scales += s.vectors * kLanes;
        group_mins += s.vectors * kLanes;
    };
    // The tiles of a run are under way while the sums of the one before are settled.
    int64_t first = 0, count = length(0);
    multiply_run(first, count, 0);
    for (int side = 0; first < s.atoms; side ^= 1) {
        const bool closes = in_group(first) + count == s.group_atoms;
        const int64_t next = first + count, next_count = next < s.atoms ? length(next) : 0;
        if (next_count) multiply_run(next, next_count, side ^ 1);
        if (closes) settle(side);
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

// ---- all rows -------------------------------------------------------------------------------------------------------

// All m rows in tiles of `rows`.
template <FormatId id>
void in_tiles(int rows, const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int64_t m,
              float* y, int64_t y_stride, uint8_t* scratch) {
    configure_bf16_tiles(rows);
    const HalfRows up_to{x.data, x.stride, first_row + m};
    product_many<Bf16Tiles<id>, id>(w, first_panel, panels, up_to, first_row, m, y, y_stride, scratch);
    tile_release();
}

template <FormatId id>
void in_vectors(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int m, float* y,
                int64_t y_stride) {
    using Product = FloatProduct<Bf16Fma, id>;
    if (m <= 1) blocks<Product, id, 1>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 2) blocks<Product, id, 2>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else blocks<Product, id, kVectorRows>(w, first_panel, panels, x, first_row, m, y, y_stride);
}

template <FormatId id>
void many_rows(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int64_t m, float* y,
               int64_t y_stride, uint8_t* scratch) {
    in_tiles<id>(kTileRows, w, first_panel, panels, x, first_row, m, y, y_stride, scratch);
}

template <FormatId id>
void few_rows(const PackedView& w, int64_t first_panel, int64_t panels, const HalfRows& x, int64_t first_row, int m, float* y,
              int64_t y_stride) {
    if (m <= kVectorRows) return in_vectors<id>(w, first_panel, panels, x, first_row, m, y, y_stride);
    alignas(kLine) uint8_t scratch[kManyScratch];
    in_tiles<id>(m, w, first_panel, panels, x, first_row, m, y, y_stride, scratch);
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
