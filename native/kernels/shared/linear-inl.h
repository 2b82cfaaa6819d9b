// The loops of the vector tiers, included inside a tier's anonymous namespace after its vector primitives. A panel's 16 rows
// are kHalves vectors of kLanes rows; a Quad holds 4 consecutive k of every row as bytes, the shape byte dot products want.
// lanes-inl.h of a tier provides
//   Quad, Ints, Floats, kLanes, kPrefetchBytes; load_quad, low_nibble, high_nibble, crumb<i>, join_nibble, add_bit<value>,
//   broadcast_four; broadcast_int, add_ints; zero, broadcast, load_halves, fma, add, multiply, to_floats, sum_of, store, prefetch.
// Then int8-inl.h or float-inl.h says how an atom is multiplied.

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

// Calls f(Index<opens>, Index<closes>): one body for the first atoms of a group, the last, both and neither.
template <class F>
ALWAYS_INLINE void with_ends(bool opens, bool closes, F f) {
    if (opens && closes) f(Index<1>{}, Index<1>{});
    else if (opens) f(Index<1>{}, Index<0>{});
    else if (closes) f(Index<0>{}, Index<1>{});
    else f(Index<0>{}, Index<0>{});
}

// The plane of the upper bits of 3, 5 and 6-bit codes begins here in an atom.
template <int bits>
constexpr int kHighPlane = kLine * (bits == 3 ? 2 : 4);

// The codes of k = 4j ... 4j+3 as clean bytes, from one half of the planes at `low` and `high`; formats.h has the picture.
template <int bits, int j>
ALWAYS_INLINE Quad code_quad(const uint8_t* low, const uint8_t* high, int half) {
    const uint8_t* at = low + half * kQuadBytes;
    if constexpr (bits == 8) return load_quad(at + kLine * j);
    if constexpr (bits == 2) return crumb<j % 4>(load_quad(at + kLine * (j / 4)));
    if constexpr (bits == 4) {
        const Quad line = load_quad(at + kLine * (j / 2));
        if constexpr (j % 2 == 0) return low_nibble(line);
        else return high_nibble(line);
    }
    if constexpr (bits == 3) return add_bit<4>(code_quad<2, j>(low, high, half), high + 8 * j, half);
    if constexpr (bits == 5) return add_bit<16>(code_quad<4, j>(low, high, half), high + 8 * j, half);
    if constexpr (bits == 6) return join_nibble(code_quad<4, j>(low, high, half), code_quad<2, j>(high, high, half));
}

// Where a panel takes two vectors, its halves take turns after this many atoms: near enough that the second finds its lines in
// L1, and far enough that the compiler does not keep the activations of an atom for it (on the stack, three times slower).
constexpr int kSegmentAtoms = kHalves == 1 ? 1 << 30 : 4;

// P panels are read side by side: a core keeps more lines under way with several streams.
template <class Product, FormatId id, int M, int P>
void block(const PackedView& w, int64_t first, int64_t last, const typename Product::template Input<M>& x, int m, float* y,
           int64_t y_stride) {
    constexpr bool scaled = kFormat<id>.codes != Codes::kFloat, has_min = kFormat<id>.has_min;
    constexpr int64_t atom_bytes = kAtomBytes<id>;
    const Layout& l = w.layout;
    const int atoms = l.group_size / kAtomK;
    const bool together = Product::together(l);
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
            for (int a = 0; a < atoms; a += kSegmentAtoms) {
                const int count = atoms - a < kSegmentAtoms ? atoms - a : kSegmentAtoms;
                NO_UNROLL for (int h = 0; h < kHalves; h++) {
                    const uint8_t* atom[P];
                    UNROLL for (int p = 0; p < P; p++) atom[p] = at[p];
                    int64_t i = 0;
                    const auto add = [&](auto number) INLINE_LAMBDA {
                        constexpr int together = decltype(number)::value;
                        // A few lines per quad: a burst of them would hold up the loads behind it.
                        const auto fetch = [&](auto j) INLINE_LAMBDA {
                            constexpr int64_t quad = decltype(j)::value, first = quad * atom_bytes / kQuads,
                                              end = (quad + 1) * atom_bytes / kQuads;
                            if (h == 0)
                                UNROLL for (int p = 0; p < P; p++)
                                    UNROLL for (int64_t at = (first + kLine - 1) / kLine * kLine; at < end; at += kLine)
                                        prefetch(atom[p] + ahead + at);
                        };
                        Product::template add_atoms<M, P, together>(atom, h, x, k + i * kAtomK, part[h], fetch);
                        UNROLL for (int p = 0; p < P; p++) atom[p] += together * atom_bytes;
                        i += together;
                    };
                    if constexpr (Product::kTogether > 1)
                        for (const int64_t end = together ? count : 0; i + Product::kTogether <= end;)
                            add(Index<Product::kTogether>{});
                    while (i < count) add(Index<1>{});
                }
                UNROLL for (int p = 0; p < P; p++) at[p] += count * atom_bytes;
                k += count * kAtomK;
            }
            [[maybe_unused]] float sums[M];
            if constexpr (has_min)
                for (int i = 0; i < M; i++) sums[i] = x.sum(i, group_k, l.group_size);
            NO_UNROLL for (int h = 0; h < kHalves; h++) {
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
    constexpr int P = Product::panels(M);
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
