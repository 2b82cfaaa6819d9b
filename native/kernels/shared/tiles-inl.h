// The tile of int8 compute for many rows in tile instructions, in the place of int8_tile-inl.h: included between many-inl.h and
// int8_many-inl.h, behind a tile_ops-inl.h and the lanes of AVX-512. One instruction sums the products of 16 rows with 16 outputs over
// the atoms that int8_tile-inl.h adds up as integers: 64 k, or 32 (half-filled tiles) where a group of weights ends between them. What
// follows, scale by scale, is what is done there in the same order, so results are equal to the last bit.

constexpr int kRunUnits = 2;  // whose sums are kept before they are scaled: 2 x 4 KB in L1

// 16 rows of sums, of one unit, for V panels.
template <int V>
struct alignas(kLine) TileDots {
    int32_t at[kTileRows][V * kPanelRows];
};

// Tile registers: sums 0 and 1, activations 4, weights 6 and 7.
inline void configure_tiles(bool pairs) {
    const int atoms = pairs ? kActivationK / kAtomK : 1;
    TileConfig config{};
    config.palette = 1;
    for (int t : {0, 1}) config.rows[t] = kTileRows, config.colsb[t] = kLine;
    config.rows[4] = kTileRows, config.colsb[4] = static_cast<uint16_t>(atoms * kAtomK);
    for (int t : {6, 7}) config.rows[t] = static_cast<uint8_t>(atoms * kQuads), config.colsb[t] = kLine;
    tile_configure(&config);
}

template <int V>
ALWAYS_INLINE void multiply_unit(const int8_t* codes, const uint8_t* weights, int line, TileDots<V>& dots) {
    static_assert(V <= 2);
    tile_load<4>(codes, kActivationK);
    tile_zero<0>();
    tile_load<6>(weights, line);
    tile_multiply<0, 4, 6>();
    if constexpr (V == 2) {
        tile_zero<1>();
        tile_load<7>(weights + kQuadBytes, line);
        tile_multiply<1, 4, 7>();
    }
    tile_store<0>(dots.at[0], V * kLine);
    if constexpr (V == 2) tile_store<1>(dots.at[0] + kPanelRows, V * kLine);
}

// Units [first, first + count) of a block of k: of one group, or a group each.
struct Run {
    int64_t first;
    int count;
    bool opens, closes;  // begins, ends a group
    bool groups;         // a group each

    static Run from(const Strip& s, int64_t first) {
        const int64_t group = s.units(s.group_atoms), in_group = (s.per_row ? s.units(s.first_atom) + first : first) % group;
        const bool groups = group == 1;
        int64_t count = groups ? kRunUnits : group - in_group;
        if (count > s.units(s.atoms) - first) count = s.units(s.atoms) - first;
        if (count > kRunUnits) count = kRunUnits;
        return {first, static_cast<int>(count), in_group == 0, groups || in_group + count == group, groups};
    }
};

// scale x sum of the activations of atoms [begin, end), a lane per row; scales and sums of 16 rows as tiles have them.
inline Floats sums_of_atoms(const float* scales, const int32_t* sums, int64_t begin, int64_t end) {
    Floats sum = zero();
    for (int64_t a = begin; a < end; a++) {
        const Floats of_atom = to_floats(load_quad(reinterpret_cast<const uint8_t*>(sums + a * kTileRows)));
        sum = add(sum, _mm512_mul_ps(load(scales + a * kAtomK / kActivationK * kTileRows), of_atom));
    }
    return sum;
}

// kTileRows rows from `row` of blocks of x that stand as tiles, times V panels of a strip.
template <FormatId like, int V>
__attribute__((noinline)) void int8_tile(const Strip& s, int vector, const QuantizedRows& x, int64_t row, float* y,
                                         int64_t y_stride) {
    constexpr int R = kTileRows, kPair = kActivationK / kAtomK;
    constexpr bool has_min = kFormat<like>.has_min;
    const int8_t* codes = x.codes + row * x.k_padded;  // of whole rows, like scales and sums
    const float* scales = x.scales + row * (x.k_padded / kActivationK);
    const int32_t* sums = x.sums + row * (x.k_padded / kAtomK);
    const uint8_t* weights = s.weights + vector * kQuadBytes;
    const float *group_scales = s.scales + vector * kLanes, *group_mins = s.mins + vector * kLanes;
    const int64_t together = s.unit_atoms(), units = s.units(s.atoms);

    TileDots<V> dots[2][kRunUnits];
    const auto multiply_run = [&](const Run& run, int side) {
        for (int u = 0; u < run.count; u++) {
            const int64_t in_block = (run.first + u) * together, atom = s.first_atom + in_block;
            multiply_unit<V>(codes + atom / kPair * kActivationK * R + atom % kPair * kAtomK, weights + in_block * kQuads * s.line,
                             s.line, dots[side][u]);
        }
    };
    const TileSums<V> t(s);
    t.begin(s, y, y_stride, row + R >= x.m);
    // Scales the sums of a run in the order of int8_tile-inl.h: unit by unit into the group's part, then that into the total.
    const auto scale_run = [&](const Run& run, int side, auto number, auto is_first, auto is_last, auto are_groups) INLINE_LAMBDA {
        constexpr int count = decltype(number)::value;
        constexpr bool opens = decltype(is_first)::value, closes = decltype(is_last)::value, each = decltype(are_groups)::value;
        constexpr int groups = each ? count : 1;  // that end here
        const int64_t first = s.first_atom + run.first * together, group_lanes = s.vectors * kLanes;
        alignas(kLine) [[maybe_unused]] float x_sum[groups][R];
        if constexpr (closes && has_min) {
            UNROLL for (int g = 0; g < groups; g++) {
                const int64_t end = first + (each ? g + 1 : count) * together;
                store(x_sum[g], sums_of_atoms(scales, sums, end - s.units(s.group_atoms) * together, end));
            }
        }
        const float *const of_groups = group_scales, *const mins = group_mins;
        float *const parts = t.part, *const totals = t.total;
        const TileDots<V>* const from = dots[side];
        const float* unit_scales[count];
        UNROLL for (int u = 0; u < count; u++) unit_scales[u] = scales + (first + u * together) / kPair * R;
        NO_UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int v = 0; v < V; v++) {
                float *part = parts + t.at(i, v), *total = totals + t.at(i, v);
                [[maybe_unused]] Floats sum_so_far = closes ? load(total) : zero();
                Floats p{};
                UNROLL for (int u = 0; u < count; u++) {
                    const auto* dot = reinterpret_cast<const uint8_t*>(from[u].at[i] + v * kPanelRows);
                    const Floats d = to_floats(load_quad(dot));
                    const float* scale = unit_scales[u] + i;
                    const bool begins = each || (u == 0 && opens);
                    p = begins ? multiply(d, scale) : fma(d, broadcast(scale), u == 0 ? load(part) : p);
                    if (!closes || (!each && u + 1 < count)) continue;
                    const int64_t of_group = (each ? u : 0) * group_lanes + v * kLanes;
                    sum_so_far = fma(p, load(of_groups + of_group), sum_so_far);
                    if constexpr (has_min)
                        sum_so_far = fma(load(mins + of_group), broadcast(x_sum[each ? u : 0] + i), sum_so_far);
                }
                store(closes ? total : part, closes ? sum_so_far : p);
            }
        if constexpr (closes) {
            group_scales += groups * group_lanes;
            group_mins += groups * group_lanes;
        }
    };
    const auto settle = [&](const Run& run, int side) {
        constexpr Index<0> no{};
        constexpr Index<1> yes{};
        const auto with = [&](auto number) INLINE_LAMBDA {
            if (run.groups) scale_run(run, side, number, yes, yes, yes);
            else if (run.opens && run.closes) scale_run(run, side, number, yes, yes, no);
            else if (run.opens) scale_run(run, side, number, yes, no, no);
            else if (run.closes) scale_run(run, side, number, no, yes, no);
            else scale_run(run, side, number, no, no, no);
        };
        static_assert(kRunUnits == 2);
        if (run.count == 2) with(Index<2>{});
        else with(Index<1>{});
    };
    // The tiles of a run are under way while the sums of the one before are scaled.
    Run run = Run::from(s, 0);
    multiply_run(run, 0);
    for (int side = 0; run.first < units; side ^= 1) {
        const int64_t end = run.first + run.count;
        const Run next = end < units ? Run::from(s, end) : Run{end, 0, false, false, false};
        multiply_run(next, side ^ 1);
        settle(run, side);
        run = next;
    }
    t.end(s, y, y_stride);
}
