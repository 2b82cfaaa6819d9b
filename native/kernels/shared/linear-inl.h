// The loops of the vector tiers, included inside a tier's anonymous namespace after its vector primitives. A panel's 16 rows
// are kHalves vectors of kLanes rows; a Quad holds 4 consecutive k of every row as bytes, the shape byte dot products
// want. The including file provides
//   Quad, Ints, Floats and kLanes; load_quad, low_nibble, high_nibble, crumb<i>, add_bit<value>, join_nibble, to_integers<id>;
//   Dot<id>: begin(sum), add<j>(quad, four activations), Ints finish();
//   floats_of<id>(quad, f) for quads of codes, wide_floats<id>(atom, half, f) for bf16, fp16, fp32;
//   zero, broadcast, load_halves, fma, add, to_floats, sum_of, store, prefetch.

constexpr int kHalves = kPanelRows / kLanes;
constexpr int kQuadBytes = kLine / kHalves;
constexpr int kQuads = kAtomK / 4;

// Calls f(Index<j>, codes) for the eight quads of one half of an atom, j ascending; codes are clean bytes.
template <int bits, class F>
ALWAYS_INLINE void each_code(const uint8_t* atom, int half, F f) {
    const uint8_t* at = atom + half * kQuadBytes;
    [[maybe_unused]] const uint8_t* high = atom + (bits == 3 ? 2 : 4) * kLine;  // the plane of the upper bits
    if constexpr (bits == 8) {
        f(Index<0>{}, load_quad(at)), f(Index<1>{}, load_quad(at + kLine));
        f(Index<2>{}, load_quad(at + 2 * kLine)), f(Index<3>{}, load_quad(at + 3 * kLine));
        f(Index<4>{}, load_quad(at + 4 * kLine)), f(Index<5>{}, load_quad(at + 5 * kLine));
        f(Index<6>{}, load_quad(at + 6 * kLine)), f(Index<7>{}, load_quad(at + 7 * kLine));
    } else if constexpr (bits == 3) {
        const auto line = [&](auto j, Quad v) {
            constexpr int q = 4 * decltype(j)::value;
            f(Index<q>{}, add_bit<4>(crumb<0>(v), high, q, half)), f(Index<q + 1>{}, add_bit<4>(crumb<1>(v), high, q + 1, half));
            f(Index<q + 2>{}, add_bit<4>(crumb<2>(v), high, q + 2, half));
            f(Index<q + 3>{}, add_bit<4>(crumb<3>(v), high, q + 3, half));
        };
        line(Index<0>{}, load_quad(at)), line(Index<1>{}, load_quad(at + kLine));
    } else {
        const auto line = [&](auto j) {
            constexpr int q = 2 * decltype(j)::value;
            const Quad v = load_quad(at + kLine * decltype(j)::value);
            Quad low = low_nibble(v), upper = high_nibble(v);
            if constexpr (bits == 5) {
                low = add_bit<16>(low, high, q, half);
                upper = add_bit<16>(upper, high, q + 1, half);
            }
            if constexpr (bits == 6) {
                const Quad crumbs = load_quad(high + half * kQuadBytes + kLine * (q / 4));
                low = join_nibble(low, crumb<q % 4>(crumbs));
                upper = join_nibble(upper, crumb<q % 4 + 1>(crumbs));
            }
            f(Index<q>{}, low), f(Index<q + 1>{}, upper);
        };
        line(Index<0>{}), line(Index<1>{}), line(Index<2>{}), line(Index<3>{});
    }
}

// ---- int8 compute ---------------------------------------------------------------------------------------------

template <FormatId id>
struct Int8Product {
    using Rows = QuantizedRows;
    static constexpr float factor = kInteger<id>.factor;

    template <int M>
    struct Input {
        const int8_t* codes[M];
        const float* scales[M];
        const int32_t* sums[M];

        Input(const Rows& x, const int64_t (&row)[M]) {
            for (int i = 0; i < M; i++) {
                codes[i] = x.codes + row[i] * x.k_padded;
                scales[i] = x.scales + row[i] * (x.k_padded / kAtomK);
                sums[i] = x.sums + row[i] * (x.k_padded / kAtomK);
            }
        }
        // Sum of the activations [k, k + count).
        float sum(int i, int64_t k, int count) const {
            float s = 0;
            for (int64_t b = k / kAtomK; b < (k + count) / kAtomK; b++) s += scales[i][b] * static_cast<float>(sums[i][b]);
            return s;
        }
    };

    // part[i] += products of one half of `atoms` consecutive atoms with rows i of x at k.
    template <int M>
    static ALWAYS_INLINE void accumulate(const uint8_t* atom, int64_t atom_bytes, int atoms, int half, const Input<M>& x,
                                         int64_t k, Floats (&part)[M]) {
        for (int a = 0; a < atoms; a++, atom += atom_bytes, k += kAtomK) {
            const int64_t block = k / kAtomK;
            Dot<id> dot[M];
            UNROLL for (int i = 0; i < M; i++) dot[i].begin(x.sums[i] + block);
            each_code<kFormat<id>.bits>(atom, half, [&](auto j, Quad codes) INLINE_LAMBDA {
                const Quad w = to_integers<id>(codes);
                UNROLL for (int i = 0; i < M; i++)
                    dot[i].template add<decltype(j)::value>(w, x.codes[i] + k + 4 * decltype(j)::value);
            });
            UNROLL for (int i = 0; i < M; i++)
                part[i] = fma(to_floats(dot[i].finish()), broadcast(x.scales[i] + block), part[i]);
        }
    }
};

// ---- fp32 compute ---------------------------------------------------------------------------------------------

template <FormatId id>
struct Fp32Product {
    using Rows = FloatRows;
    static constexpr float factor = kFloatFactor<id>;

    template <int M>
    struct Input {
        const float* x[M];

        Input(const Rows& rows, const int64_t (&row)[M]) {
            for (int i = 0; i < M; i++) x[i] = rows.data + row[i] * rows.stride;
        }
        float sum(int i, int64_t k, int count) const { return sum_of(x[i] + k, count); }
    };

    template <int M>
    static ALWAYS_INLINE void accumulate(const uint8_t* atom, int64_t atom_bytes, int atoms, int half, const Input<M>& x,
                                         int64_t k, Floats (&part)[M]) {
        // Several sums per row hide the latency of the multiply-add where there are few rows.
        constexpr int kChains = M <= 2 ? 4 : M <= 4 ? 2 : 1;
        Floats sum[M][kChains];
        UNROLL for (int i = 0; i < M; i++)
            UNROLL for (int c = 0; c < kChains; c++) sum[i][c] = zero();
        for (int a = 0; a < atoms; a++, atom += atom_bytes, k += kAtomK) {
            const auto add_k = [&](auto at, Floats w) INLINE_LAMBDA {
                constexpr int offset = decltype(at)::value;
                UNROLL for (int i = 0; i < M; i++)
                    sum[i][offset % kChains] = fma(w, broadcast(x.x[i] + k + offset), sum[i][offset % kChains]);
            };
            if constexpr (kFormat<id>.codes == Codes::kFloat)
                wide_floats<id>(atom, half, add_k);
            else
                each_code<kFormat<id>.bits>(atom, half, [&](auto j, Quad codes) INLINE_LAMBDA {
                    constexpr int first = 4 * decltype(j)::value;
                    floats_of<id>(codes, [&](auto b, Floats w) INLINE_LAMBDA { add_k(Index<first + decltype(b)::value>{}, w); });
                });
        }
        UNROLL for (int i = 0; i < M; i++)
            UNROLL for (int c = 0; c < kChains; c++) part[i] = add(part[i], sum[i][c]);
    }
};

// ---- the product of P panels with M rows ----------------------------------------------------------------------

constexpr int kSegmentAtoms = 4;  // atoms of one panel before the next panel's turn: every panel stays a live stream

template <class Product, FormatId id, int M, int P>
void block(const PackedView& w, int64_t panel, int64_t last_panel, const typename Product::template Input<M>& x, int m, float* y,
           int64_t y_stride) {
    constexpr bool scaled = kFormat<id>.codes != Codes::kFloat, has_min = kFormat<id>.has_min;
    const Layout& l = w.layout;
    const int64_t atom_bytes = kAtomBytes<id>, tile_lines = l.tile_bytes - (scaled ? kLine : 0) - (has_min ? kLine : 0);
    const int atoms = l.group_size / kAtomK;
    const int64_t first = panel;
    const uint8_t* base[P];  // a block that runs over the last panel computes that one again
    UNROLL for (int p = 0; p < P; p++) base[p] = w.data + (first + p < last_panel ? first + p : last_panel) * l.panel_bytes;

    Floats total[P][kHalves][M];
    UNROLL for (int p = 0; p < P; p++)
        UNROLL for (int h = 0; h < kHalves; h++)
            UNROLL for (int i = 0; i < M; i++) total[p][h][i] = zero();

    int64_t k = 0;
    for (int64_t tile = 0; tile < l.panel_bytes; tile += l.tile_bytes) {
        // Past the end of a panel, its stream goes on in the panel that this one's place in the next block will take.
        const int64_t ahead = kPrefetchBytes + (tile + kPrefetchBytes < l.panel_bytes ? 0 : (P - 1) * l.panel_bytes);
        int64_t offset = tile;
        for (int g = 0; g < l.groups_per_tile; g++) {
            Floats part[P][kHalves][M];
            UNROLL for (int p = 0; p < P; p++)
                UNROLL for (int h = 0; h < kHalves; h++)
                    UNROLL for (int i = 0; i < M; i++) part[p][h][i] = zero();
            const int64_t group_k = k;
            for (int a = 0; a < atoms; a += kSegmentAtoms) {
                const int count = atoms - a < kSegmentAtoms ? atoms - a : kSegmentAtoms;
                UNROLL for (int p = 0; p < P; p++) {
                    const uint8_t* at = base[p] + offset;
                    for (int64_t line = 0; line < count * atom_bytes; line += kLine) prefetch(at + ahead + line);
                    UNROLL for (int h = 0; h < kHalves; h++)
                        Product::template accumulate<M>(at, atom_bytes, count, h, x, k, part[p][h]);
                }
                offset += count * atom_bytes;
                k += count * kAtomK;
            }
            [[maybe_unused]] float sums[M];
            if constexpr (has_min)
                for (int i = 0; i < M; i++) sums[i] = x.sum(i, group_k, l.group_size);
            UNROLL for (int p = 0; p < P; p++) {
                const uint8_t* scales = base[p] + tile + tile_lines + 2 * kPanelRows * g;
                UNROLL for (int h = 0; h < kHalves; h++) {
                    if constexpr (!scaled) {
                        UNROLL for (int i = 0; i < M; i++) total[p][h][i] = add(total[p][h][i], part[p][h][i]);
                        continue;
                    }
                    const Floats scale = load_halves(scales + 2 * kLanes * h);
                    UNROLL for (int i = 0; i < M; i++) total[p][h][i] = fma(part[p][h][i], scale, total[p][h][i]);
                    if constexpr (has_min) {
                        const Floats min = load_halves(scales + kLine + 2 * kLanes * h);
                        UNROLL for (int i = 0; i < M; i++) total[p][h][i] = fma(min, broadcast(&sums[i]), total[p][h][i]);
                    }
                }
            }
        }
        if constexpr (scaled)
            UNROLL for (int p = 0; p < P; p++)
                for (int64_t line = tile_lines; line < l.tile_bytes; line += kLine) prefetch(base[p] + tile + ahead + line);
    }

    const float multiplier = w.multiplier * Product::factor;
    UNROLL for (int p = 0; p < P; p++) {
        if (first + p > last_panel) break;
        UNROLL for (int h = 0; h < kHalves; h++)
            UNROLL for (int i = 0; i < M; i++)
                if (i < m) store(y + i * y_stride + (first + p) * kPanelRows + h * kLanes, multiply(total[p][h][i], &multiplier));
    }
}

template <class Product, FormatId id, int M, int P>
void blocks(const PackedView& w, int64_t first_panel, int64_t panels, const typename Product::Rows& x, int64_t first_row, int m,
            float* y, int64_t y_stride) {
    int64_t row[M];  // a block of fewer than M rows computes the last one several times
    for (int i = 0; i < M; i++) row[i] = first_row + (i < m ? i : m - 1);
    const typename Product::template Input<M> input(x, row);
    for (int64_t p = 0; p < panels; p += P)
        block<Product, id, M, P>(w, first_panel + p, first_panel + panels - 1, input, m, y, y_stride);
}

template <class Product, FormatId id>
void product(const PackedView& w, int64_t first_panel, int64_t panels, const typename Product::Rows& x, int64_t first_row, int m,
             float* y, int64_t y_stride) {
    if (m <= 1) blocks<Product, id, 1, 4>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 2) blocks<Product, id, 2, 4>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 4) blocks<Product, id, 4, 2>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else blocks<Product, id, 8, 2>(w, first_panel, panels, x, first_row, m, y, y_stride);
}
