// Products of 3 to 8 rows in int8 compute, included behind int8-inl.h in place of its blocks of so many rows. Tiles of some rows times
// half of some panels take a segment of k in turn: their sums and what feeds them fit in the registers, and the activations are read
// once for several panels. What a scale or a group ends is settled row by row, beside the last multiplications of the next row; totals
// stand in memory. The order of operations is that of linear-inl.h: results are equal to the last bit.
// The including file provides
//   kFewRows, kFewPanels<id, m>: a tile, for m = 4 and 8 rows, of vectors of half a panel where a panel takes two;
//   kFewUnpacks<id, m>: whether weights of a segment are unpacked before use, for tiles that share them or lack registers to do it.

constexpr int kFewSegment = 4;  // atoms, which all tiles find in L1

// Up to kFewSegment atoms of V panels: groups of one tile of the layout, or a part of one.
template <int V>
struct FewSegment {
    const uint8_t* atom[V];
    const uint8_t* scales[V];  // of the tile, as halves
    uint8_t* unpacked;         // [quad][half][panel]
    int64_t ahead, fetches;    // from an atom to what is fetched meanwhile; bytes of that per pass and unit
    const int8_t* codes;       // of interleaved rows, see QuantizedRows
    const float* x_scales;
    const int32_t* x_sums;
    int width;
    int atoms, group_atoms;
    int group, in_group;  // of the tile, and atoms of it that lie before this segment
};

template <FormatId id, int V>
__attribute__((noinline)) void unpack_segment(const FewSegment<V>& s) {
    constexpr int bits = kFormat<id>.bits;
    for (int v = 0; v < V; v++) {
        const uint8_t* atom = s.atom[v];
        uint8_t* to = s.unpacked + v * kQuadBytes;
        for (int a = 0; a < s.atoms; a++, atom += kAtomBytes<id>, to += kQuads * kHalves * V * kQuadBytes)
            for (int h = 0; h < kHalves; h++)
                for_each_index<kQuads>([&](auto j) INLINE_LAMBDA {
                    constexpr int quad = decltype(j)::value;
                    const Quad codes = code_quad<bits, quad>(atom, atom + kHighPlane<bits>, h);
                    store_quad(to + (quad * kHalves + h) * V * kQuadBytes, to_integers<id>(codes));
                });
    }
}

// R rows from `lane` times one half of V panels; `together` atoms are added up as integers. part and total: [R][V][kLanes], sums of
// activations: [group of the tile][kMaxKernelRows]. Pass number `pass` over the weights fetches its share of what comes next.
template <FormatId id, bool unpacked, int R, int V, int together>
__attribute__((noinline)) void few_tile(const FewSegment<V>& s, int half, int lane, int pass, float* part, float* total,
                                        const float* group_sums) {
    constexpr int bits = kFormat<id>.bits, quads = kQuads * together, pair = kActivationK / kAtomK;
    constexpr bool has_min = kFormat<id>.has_min;
    constexpr int64_t bytes = kAtomBytes<id> * together, line = kHalves * V * kQuadBytes;
    const int64_t width = s.width, fetches = s.fetches, ahead = s.ahead + pass * fetches;
    const int8_t* codes = s.codes + 4 * lane;
    const float* x_scale = s.x_scales + lane;
    const int32_t* x_sum = s.x_sums + lane;
    const uint8_t* from = s.unpacked + half * V * kQuadBytes;
    const uint8_t* atom[V];
    UNROLL for (int v = 0; v < V; v++) atom[v] = s.atom[v];
    int group = s.group, in_group = s.in_group;
    for (int a = 0; a < s.atoms; a += together) {
        const auto weights = [&](auto j, int v) INLINE_LAMBDA {
            constexpr int quad = decltype(j)::value;
            if constexpr (unpacked) return load_quad(from + quad * line + v * kQuadBytes);
            const uint8_t* low = atom[v] + quad / kQuads * kAtomBytes<id>;
            return to_integers<id>(code_quad<bits, quad % kQuads>(low, low + kHighPlane<bits>, half));
        };
        Dot<id> dot[R][V];
        UNROLL for (int i = 0; i < R; i++) {
            const Dot<id> start = Dot<id>::start(activation_sum<together>(x_sum + i, width));
            UNROLL for (int v = 0; v < V; v++) dot[i][v] = start;
        }
        for_each_index<quads - 1>([&](auto j) INLINE_LAMBDA {
            constexpr int64_t quad = decltype(j)::value, fetch = quad * kLine;
            if (fetch < bytes && fetch < fetches) UNROLL for (int v = 0; v < V; v++) prefetch(atom[v] + ahead + fetch);
            Quad w[V];
            UNROLL for (int v = 0; v < V; v++) w[v] = weights(j, v);
            UNROLL for (int i = 0; i < R; i++) {
                const Quad four = broadcast_four(codes + 4 * i);
                UNROLL for (int v = 0; v < V; v++) dot[i][v].template add<quad>(w[v], four);
            }
            codes += 4 * width;
        });
        const auto drain = [&](auto is_first, auto is_last) INLINE_LAMBDA {
            constexpr bool opens = decltype(is_first)::value, closes = decltype(is_last)::value;
            constexpr Index<quads - 1> last{};
            [[maybe_unused]] float scale[V][kLanes], min[V][kLanes];
            if constexpr (closes) {
                UNROLL for (int v = 0; v < V; v++) {
                    const uint8_t* halves = s.scales[v] + 2 * (kPanelRows * group + kLanes * half);
                    store(scale[v], load_halves(halves));
                    if constexpr (has_min) store(min[v], load_halves(halves + kLine));
                }
            }
            Quad w[V];
            UNROLL for (int v = 0; v < V; v++) w[v] = weights(last, v);
            UNROLL for (int i = 0; i < R; i++) {
                const Quad four = broadcast_four(codes + 4 * i);
                UNROLL for (int v = 0; v < V; v++) dot[i][v].template add<quads - 1>(w[v], four);
                const Floats row_scale = broadcast(x_scale + i);
                UNROLL for (int v = 0; v < V; v++) {
                    const int at = (i * V + v) * kLanes;
                    const Floats d = to_floats(dot[i][v].finish(activation_sum<together>(x_sum + i, width)));
                    const Floats p = opens ? multiply(d, row_scale) : fma(d, row_scale, load(part + at));
                    if constexpr (closes) {
                        Floats sum_so_far = fma(p, load(scale[v]), load(total + at));
                        if constexpr (has_min)
                            sum_so_far = fma(load(min[v]), broadcast(group_sums + group * kMaxKernelRows + lane + i), sum_so_far);
                        store(total + at, sum_so_far);
                    } else {
                        store(part + at, p);
                    }
                }
            }
            codes += 4 * width;
        };
        const bool opens = in_group == 0, closes = in_group + together >= s.group_atoms;
        with_ends(opens, closes, drain);
        in_group = closes ? 0 : in_group + together;
        group += closes;
        UNROLL for (int v = 0; v < V; v++) atom[v] += bytes;
        from += quads * line;
        x_sum += together * width;
        if ((a + together) % pair == 0) x_scale += width;
    }
}

// Panels [first, first + V); those behind `last` repeat it and are not stored.
template <FormatId id, bool unpacked, int R, int V>
void few_block(const PackedView& w, int64_t first, int64_t last, const QuantizedRows& x, int64_t first_row, int m, float* y,
               int64_t y_stride) {
    constexpr bool has_min = kFormat<id>.has_min;
    constexpr int pair = kActivationK / kAtomK, tile_floats = R * V * kLanes, most = kMaxKernelRows / R * kHalves;
    const Layout& l = w.layout;
    const bool pairs = sums_pairs(l);
    const int group_atoms = l.group_size / kAtomK, tile_atoms = l.groups_per_tile * group_atoms;
    const int passes = interleave_width(m) / R * kHalves;

    alignas(kLine) float part[most][tile_floats], total[most][tile_floats];
    alignas(kLine) uint8_t scratch[unpacked ? kFewSegment * kQuads * kHalves * V * kQuadBytes : 1];
    for (int i = 0; i < passes * tile_floats; i += kLanes) store(total[0] + i, zero());

    FewSegment<V> s;
    const uint8_t* at[V];
    UNROLL for (int v = 0; v < V; v++) at[v] = w.panel(first + v < last ? first + v : last);
    s.unpacked = scratch;
    s.width = interleave_width(m);
    s.group_atoms = group_atoms;
    const int64_t unit_lines = kAtomBytes<id> * (pairs ? pair : 1) / kLine;
    s.fetches = (unit_lines + passes - 1) / passes * kLine;
    s.codes = x.codes + first_row * x.k_padded;
    s.x_scales = x.scales + first_row * (x.k_padded / kActivationK);
    s.x_sums = x.sums + first_row * (x.k_padded / kAtomK);
    int64_t left = l.panel_bytes;
    for (int64_t tile = 0; tile < l.tiles; tile++, left -= l.tile_bytes) {
        // Past the end of a panel, its stream goes on in the panel that takes this one's place in the next block.
        s.ahead = kPrefetchBytes + (left > kPrefetchBytes ? 0 : (V - 1) * l.panel_bytes);
        UNROLL for (int v = 0; v < V; v++) s.scales[v] = at[v] + tile_atoms * kAtomBytes<id>;
        [[maybe_unused]] float group_sums[2 * kMaxKernelRows] = {};
        if constexpr (has_min)
            for (int a = 0; a < tile_atoms; a++)
                for (int i = 0; i < s.width; i++)
                    group_sums[a / group_atoms * kMaxKernelRows + i] +=
                        s.x_scales[a / pair * s.width + i] * static_cast<float>(s.x_sums[a * s.width + i]);
        const int whole = group_atoms < kFewSegment ? kFewSegment / group_atoms * group_atoms : kFewSegment;
        for (int a = 0; a < tile_atoms; a += s.atoms) {
            s.group = a / group_atoms;
            s.in_group = a % group_atoms;
            const int rest = group_atoms < kFewSegment ? tile_atoms - a : group_atoms - s.in_group;
            s.atoms = rest < whole ? rest : whole;
            const bool together = pairs && s.atoms >= pair;
            if (together) s.atoms -= s.atoms % pair;  // an atom without a partner has a segment for itself
            UNROLL for (int v = 0; v < V; v++) s.atom[v] = at[v];
            if constexpr (unpacked) unpack_segment<id, V>(s);
            for (int pass = 0; pass < passes; pass++) {
                const int half = pass % kHalves, lane = pass / kHalves * R;
                if (together) few_tile<id, unpacked, R, V, pair>(s, half, lane, pass, part[pass], total[pass], group_sums);
                else few_tile<id, unpacked, R, V, 1>(s, half, lane, pass, part[pass], total[pass], group_sums);
            }
            UNROLL for (int v = 0; v < V; v++) at[v] += s.atoms * kAtomBytes<id>;
            s.codes += s.atoms * kAtomK * s.width;
            s.x_scales += s.atoms / pair * s.width;
            s.x_sums += s.atoms * s.width;
        }
        UNROLL for (int v = 0; v < V; v++)
            UNROLL for (int line = 0; line < (has_min ? 2 : 1); line++, at[v] += kLine) prefetch(at[v] + s.ahead);
    }

    const float multiplier = w.multiplier * Int8Product<id>::factor;
    for (int i = 0; i < m; i++)
        for (int v = 0; v < V && first + v <= last; v++)
            for (int h = 0; h < kHalves; h++) {
                const Floats sum = load(total[i / R * kHalves + h] + (i % R * V + v) * kLanes);
                store(y + i * y_stride + (first + v) * kPanelRows + h * kLanes, multiply(sum, broadcast(&multiplier)));
            }
}

// All panels: blocks of the plan's width, and of two where one or two (of four) would be left for a last one.
template <FormatId id, int m>
void few_blocks(const PackedView& w, int64_t first_panel, int64_t panels, const QuantizedRows& x, int64_t first_row, int rows, float* y,
                int64_t y_stride) {
    constexpr int V = kFewPanels<id, m>;
    constexpr bool unpacked = kFewUnpacks<id, m>;
    const int64_t last = first_panel + panels - 1;
    for (int64_t p = first_panel; p <= last;) {
        const int64_t left = last - p + 1;
        if (left <= 2 || (V == 3 && left == 4)) {
            few_block<id, unpacked, kFewRows, 2>(w, p, last, x, first_row, rows, y, y_stride);
            p += 2;
        } else {
            few_block<id, unpacked, kFewRows, V>(w, p, last, x, first_row, rows, y, y_stride);
            p += V;
        }
    }
}

template <FormatId id>
void product_few(const PackedView& w, int64_t first_panel, int64_t panels, const QuantizedRows& x, int64_t first_row, int m, float* y,
                 int64_t y_stride) {
    if (m <= 1) blocks<Int8Product<id>, id, 1>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 2) blocks<Int8Product<id>, id, 2>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 4) few_blocks<id, 4>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else few_blocks<id, 8>(w, first_panel, panels, x, first_row, m, y, y_stride);
}

template <FormatId id>
void add_int8_few_format(LinearKernels& k) {
    if constexpr (kHasInt8<id>) k.int8[static_cast<int>(id)] = product_few<id>;
}
