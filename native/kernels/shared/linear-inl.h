// The loops of the vector tiers, included inside a tier's anonymous namespace after its vector primitives. A panel's 16 rows
// are kHalves vectors of kLanes rows; a Quad holds 4 consecutive k of every row as bytes, the shape byte dot products want.
// The including file provides
//   Quad, Ints, Floats, kLanes, and panels_at_once(M): panels whose products with M rows fit in the registers;
//   load_quad, low_nibble, high_nibble, crumb<i>, join_nibble, add_bit<value>, broadcast_four;
//   to_integers<id>(codes), Dot<id>: start(sum), add<quad>(weights, activations), Ints finish();
//   float_of<id, b>(codes), wide_float<id, k>(atom, half) for bf16, fp16, fp32, and kFloatFactor<id>;
//   zero, broadcast, load_halves, fma, add, multiply, to_floats, sum_of, store, prefetch.

constexpr int kHalves = kPanelRows / kLanes;
constexpr int kQuadBytes = kLine / kHalves;
constexpr int kQuads = kAtomK / 4;

// Calls f(Index<0>) ... f(Index<n - 1>).
template <int n, class F>
ALWAYS_INLINE void for_each_index(F f) {
    if constexpr (n > 0) {
        for_each_index<n - 1>(f);
        f(Index<n - 1>{});
    }
}

// The codes of k = 4j ... 4j+3 as clean bytes, from one half of an atom; formats.h has the planes.
template <int bits, int j>
ALWAYS_INLINE Quad code_quad(const uint8_t* atom, int half) {
    const uint8_t* at = atom + half * kQuadBytes;
    if constexpr (bits == 8) return load_quad(at + kLine * j);
    if constexpr (bits == 2) return crumb<j % 4>(load_quad(at + kLine * (j / 4)));
    if constexpr (bits == 4) {
        const Quad line = load_quad(at + kLine * (j / 2));
        if constexpr (j % 2 == 0) return low_nibble(line);
        else return high_nibble(line);
    }
    if constexpr (bits == 3) return add_bit<4>(code_quad<2, j>(atom, half), atom + 2 * kLine + 8 * j, half);
    if constexpr (bits == 5) return add_bit<16>(code_quad<4, j>(atom, half), atom + 4 * kLine + 8 * j, half);
    if constexpr (bits == 6) return join_nibble(code_quad<4, j>(atom, half), code_quad<2, j>(atom + 4 * kLine, half));
}

// ---- int8 compute ---------------------------------------------------------------------------------------------

template <FormatId id>
struct Int8Product {
    using Rows = QuantizedRows;
    static constexpr float factor = kInteger<id>.factor;

    // M interleaved rows: see QuantizedRows.
    template <int M>
    struct Input {
        const int8_t* codes;
        const float* scales;
        const int32_t* sums;

        Input(const Rows& x, int64_t first_row, int)
            : codes(x.codes + first_row * x.k_padded),
              scales(x.scales + first_row * (x.k_padded / kAtomK)),
              sums(x.sums + first_row * (x.k_padded / kAtomK)) {}
        // Sum of the activations [k, k + count) of row i.
        float sum(int i, int64_t k, int count) const {
            float s = 0;
            for (int64_t g = k / kAtomK; g < (k + count) / kAtomK; g++)
                s += scales[g * M + i] * static_cast<float>(sums[g * M + i]);
            return s;
        }
    };

    // part[p][i] += products of one half of an atom of P panels with rows i of x at k.
    template <int M, int P>
    static ALWAYS_INLINE void add_atom(const uint8_t* const (&atom)[P], int half, const Input<M>& x, int64_t k,
                                       Floats (&part)[P][M]) {
        const int8_t* codes = x.codes + k * M;
        const float* scales = x.scales + k / kAtomK * M;
        const int32_t* sums = x.sums + k / kAtomK * M;
        Dot<id> dot[P][M];
        UNROLL for (int i = 0; i < M; i++) {
            const Dot<id> start = Dot<id>::start(sums + i);
            UNROLL for (int p = 0; p < P; p++) dot[p][i] = start;
        }
        for_each_index<kQuads>([&](auto j) INLINE_LAMBDA {
            constexpr int quad = decltype(j)::value;
            if constexpr (M <= P) {  // hold the smaller side of the block in registers
                Quad four[M];
                UNROLL for (int i = 0; i < M; i++) four[i] = broadcast_four(codes + 4 * (quad * M + i));
                UNROLL for (int p = 0; p < P; p++) {
                    const Quad w = to_integers<id>(code_quad<kFormat<id>.bits, quad>(atom[p], half));
                    UNROLL for (int i = 0; i < M; i++) dot[p][i].template add<quad>(w, four[i]);
                }
            } else {
                Quad w[P];
                UNROLL for (int p = 0; p < P; p++) w[p] = to_integers<id>(code_quad<kFormat<id>.bits, quad>(atom[p], half));
                UNROLL for (int i = 0; i < M; i++) {
                    const Quad four = broadcast_four(codes + 4 * (quad * M + i));
                    UNROLL for (int p = 0; p < P; p++) dot[p][i].template add<quad>(w[p], four);
                }
            }
        });
        UNROLL for (int i = 0; i < M; i++) {
            const Floats scale = broadcast(scales + i);
            UNROLL for (int p = 0; p < P; p++) part[p][i] = fma(to_floats(dot[p][i].finish()), scale, part[p][i]);
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

        // Of fewer than M rows, the last is multiplied several times.
        Input(const Rows& rows, int64_t first_row, int m) {
            for (int i = 0; i < M; i++) x[i] = rows.data + (first_row + (i < m ? i : m - 1)) * rows.stride;
        }
        float sum(int i, int64_t k, int count) const { return sum_of(x[i] + k, count); }
    };

    template <int M, int P>
    static ALWAYS_INLINE void add_atom(const uint8_t* const (&atom)[P], int half, const Input<M>& x, int64_t k,
                                       Floats (&part)[P][M]) {
        constexpr int chains = M == 1 ? 2 : 1;  // sums per output, which hide the latency of the multiply-add
        Floats sum[P][M][chains];
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int i = 0; i < M; i++)
                UNROLL for (int c = 0; c < chains; c++) sum[p][i][c] = zero();
        const auto add_k = [&](auto at, const Floats(&w)[P]) INLINE_LAMBDA {
            constexpr int offset = decltype(at)::value;
            UNROLL for (int i = 0; i < M; i++) {
                const Floats value = broadcast(x.x[i] + k + offset);
                UNROLL for (int p = 0; p < P; p++)
                    sum[p][i][offset % chains] = fma(w[p], value, sum[p][i][offset % chains]);
            }
        };
        if constexpr (kFormat<id>.codes == Codes::kFloat) {
            for_each_index<kAtomK>([&](auto at) INLINE_LAMBDA {
                Floats w[P];
                UNROLL for (int p = 0; p < P; p++) w[p] = wide_float<id, decltype(at)::value>(atom[p], half);
                add_k(at, w);
            });
        } else {
            for_each_index<kQuads>([&](auto j) INLINE_LAMBDA {
                constexpr int quad = decltype(j)::value;
                Quad codes[P];
                UNROLL for (int p = 0; p < P; p++) codes[p] = code_quad<kFormat<id>.bits, quad>(atom[p], half);
                for_each_index<4>([&](auto b) INLINE_LAMBDA {
                    constexpr int byte = decltype(b)::value;
                    Floats w[P];
                    UNROLL for (int p = 0; p < P; p++) w[p] = float_of<id, byte>(codes[p]);
                    add_k(Index<4 * quad + byte>{}, w);
                });
            });
        }
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int i = 0; i < M; i++)
                UNROLL for (int c = 0; c < chains; c++) part[p][i] = add(part[p][i], sum[p][i][c]);
    }
};

// ---- the product of P panels with M rows ----------------------------------------------------------------------

// P panels are read side by side: a core keeps more lines under way with several streams.
template <class Product, FormatId id, int M, int P>
void block(const PackedView& w, int64_t first, int64_t last, const typename Product::template Input<M>& x, int m, float* y,
           int64_t y_stride) {
    constexpr bool scaled = kFormat<id>.codes != Codes::kFloat, has_min = kFormat<id>.has_min;
    constexpr int64_t atom_bytes = kAtomBytes<id>;
    const Layout& l = w.layout;
    const int atoms = l.group_size / kAtomK;
    const uint8_t* at[P];  // a block that runs over the last panel computes that one again
    UNROLL for (int p = 0; p < P; p++) at[p] = w.data + (first + p < last ? first + p : last) * l.panel_bytes;

    Floats total[kHalves][P][M];
    UNROLL for (int h = 0; h < kHalves; h++)
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int i = 0; i < M; i++) total[h][p][i] = zero();

    int64_t k = 0, left = l.panel_bytes;
    for (int64_t tile = 0; tile < l.tiles; tile++, left -= l.tile_bytes) {
        // Past the end of a panel, its stream goes on in the panel that takes this one's place in the next block.
        const int64_t ahead = kPrefetchBytes + (left > kPrefetchBytes ? 0 : (P - 1) * l.panel_bytes);
        const int64_t scale_offset = l.groups_per_tile * atoms * atom_bytes;
        const uint8_t* scale_line[P];
        UNROLL for (int p = 0; p < P; p++) scale_line[p] = at[p] + scale_offset;
        for (int g = 0; g < l.groups_per_tile; g++) {
            Floats part[kHalves][P][M];
            UNROLL for (int h = 0; h < kHalves; h++)
                UNROLL for (int p = 0; p < P; p++)
                    UNROLL for (int i = 0; i < M; i++) part[h][p][i] = zero();
            const int64_t group_k = k;
            for (int a = 0; a < atoms; a++, k += kAtomK) {
                UNROLL for (int p = 0; p < P; p++)
                    UNROLL for (int64_t line = 0; line < atom_bytes; line += kLine) prefetch(at[p] + ahead + line);
                UNROLL for (int h = 0; h < kHalves; h++) Product::template add_atom<M, P>(at, h, x, k, part[h]);
                UNROLL for (int p = 0; p < P; p++) at[p] += atom_bytes;
            }
            [[maybe_unused]] float sums[M];
            if constexpr (has_min)
                for (int i = 0; i < M; i++) sums[i] = x.sum(i, group_k, l.group_size);
            UNROLL for (int h = 0; h < kHalves; h++) {
                const int lanes = 2 * (kPanelRows * g + kLanes * h);
                UNROLL for (int p = 0; p < P; p++) {
                    if constexpr (scaled) {
                        const Floats scale = load_halves(scale_line[p] + lanes);
                        UNROLL for (int i = 0; i < M; i++) total[h][p][i] = fma(part[h][p][i], scale, total[h][p][i]);
                    } else {
                        UNROLL for (int i = 0; i < M; i++) total[h][p][i] = add(total[h][p][i], part[h][p][i]);
                    }
                    if constexpr (has_min) {
                        const Floats min = load_halves(scale_line[p] + kLine + lanes);
                        UNROLL for (int i = 0; i < M; i++) total[h][p][i] = fma(min, broadcast(sums + i), total[h][p][i]);
                    }
                }
            }
        }
        constexpr int64_t lines = (scaled ? kLine : 0) + (has_min ? kLine : 0);
        UNROLL for (int p = 0; p < P; p++) {
            UNROLL for (int64_t line = 0; line < lines; line += kLine) prefetch(at[p] + ahead + line);
            at[p] += lines;
        }
    }

    const float multiplier = w.multiplier * Product::factor;
    UNROLL for (int p = 0; p < P; p++) {
        if (first + p > last) break;
        UNROLL for (int h = 0; h < kHalves; h++)
            UNROLL for (int i = 0; i < M; i++)
                if (i < m) store(y + i * y_stride + (first + p) * kPanelRows + h * kLanes, multiply(total[h][p][i], &multiplier));
    }
}

template <class Product, FormatId id, int M>
void blocks(const PackedView& w, int64_t first_panel, int64_t panels, const typename Product::Rows& x, int64_t first_row, int m,
            float* y, int64_t y_stride) {
    constexpr int P = panels_at_once(M);
    const typename Product::template Input<M> input(x, first_row, m);
    for (int64_t p = 0; p < panels; p += P)
        block<Product, id, M, P>(w, first_panel + p, first_panel + panels - 1, input, m, y, y_stride);
}

template <class Product, FormatId id>
void product(const PackedView& w, int64_t first_panel, int64_t panels, const typename Product::Rows& x, int64_t first_row, int m,
             float* y, int64_t y_stride) {
    if (m <= 1) blocks<Product, id, 1>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 2) blocks<Product, id, 2>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else if (m <= 4) blocks<Product, id, 4>(w, first_panel, panels, x, first_row, m, y, y_stride);
    else blocks<Product, id, 8>(w, first_panel, panels, x, first_row, m, y, y_stride);
}

template <FormatId id>
void add_format(LinearKernels& k) {
    k.fp32[static_cast<int>(id)] = product<Fp32Product<id>, id>;
    if constexpr (kHasInt8<id>) k.int8[static_cast<int>(id)] = product<Int8Product<id>, id>;
}
