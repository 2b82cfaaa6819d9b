// Many rows of products whose sums are floats, included behind float-inl.h and many-inl.h. Unpacked weights are vectors of a Way, so all
// formats share the tiles; those with and without scales and minima differ.

template <class Way, bool scaled, bool has_min, int V>
__attribute__((noinline)) void float_tile(const Strip& s, int vector, const typename Way::Rows& x, int64_t row, float* y,
                                          int64_t y_stride) {
    constexpr int R = kTileRows, kEach = Way::kEach;
    const typename Way::Value* value[R];
    UNROLL for (int i = 0; i < R; i++) value[i] = x.data + (row + i) * x.stride + s.first_atom * kAtomK;
    const uint8_t* weights = s.weights + vector * kQuadBytes;
    const float *group_scales = s.scales + vector * kLanes, *group_mins = s.mins + vector * kLanes;

    const TileSums<V> t(s);
    t.begin(s, y, y_stride, row + R >= x.m);
    int in_group = s.per_row ? static_cast<int>(s.first_atom) : 0;
    for (int64_t a = 0; a < s.atoms; a++) {
        Floats sum[R][V];
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int v = 0; v < V; v++) sum[i][v] = zero();
        NO_UNROLL for (int k = 0; k < kAtomK; k += 4 * kEach) {
            for_each_index<4>([&](auto j) INLINE_LAMBDA {
                constexpr int at = decltype(j)::value;
                typename Way::Weights w[V];
                UNROLL for (int v = 0; v < V; v++) w[v] = Way::load_weights(weights + at * s.line + v * kQuadBytes);
                UNROLL for (int i = 0; i < R; i++) {
                    const auto factor = Way::activations(value[i] + at * kEach);
                    UNROLL for (int v = 0; v < V; v++) sum[i][v] = Way::add_product(w[v], factor, sum[i][v]);
                }
            });
            weights += 4 * s.line;
            UNROLL for (int i = 0; i < R; i++) value[i] += 4 * kEach;
        }
        const bool opens = in_group == 0, closes = in_group == s.group_atoms - 1;
        in_group = closes ? 0 : in_group + 1;
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int v = 0; v < V; v++) {
                float* part = t.part + t.at(i, v);
                if (!opens) sum[i][v] = add(load(part), sum[i][v]);
                if (!closes) store(part, sum[i][v]);
            }
        if (!closes) continue;
        UNROLL for (int i = 0; i < R; i++) {
            [[maybe_unused]] float activations = 0;
            if constexpr (has_min) activations = Way::sum_of_values(value[i] - s.group_atoms * kAtomK, s.group_atoms * kAtomK);
            UNROLL for (int v = 0; v < V; v++) {
                Floats total = load(t.total + t.at(i, v));
                if constexpr (scaled) total = fma(sum[i][v], load(group_scales + v * kLanes), total);
                else total = add(total, sum[i][v]);
                if constexpr (has_min) total = fma(load(group_mins + v * kLanes), broadcast(&activations), total);
                store(t.total + t.at(i, v), total);
            }
        }
        group_scales += s.vectors * kLanes;
        group_mins += s.vectors * kLanes;
    }
    t.end(s, y, y_stride);
}

// Floats are kQuadBytes for the rows of a vector, as four k of codes are: one line for 16 rows.
template <class Way, FormatId id>
struct FloatMany {
    using Rows = typename Way::Rows;
    static constexpr float factor = Way::template factor<id>;
    static constexpr int kBlockK = 128 * Way::kEach;  // of a strip: 24 KB
    static constexpr bool kWholeRows = false;
    static constexpr int kLineBytes = kLine, kAtomLines = kAtomK / Way::kEach;

    static ALWAYS_INLINE void unpack_atom(const uint8_t* atom, uint8_t* to, int line) {
        for (int h = 0; h < kHalves; h++) {
            const auto put = [&](int at, typename Way::Weights w) INLINE_LAMBDA { Way::store_weights(to + at * line + h * kQuadBytes, w); };
            if constexpr (kFormat<id>.codes == Codes::kFloat) {
                for_each_index<kAtomLines>([&](auto number) INLINE_LAMBDA {
                    constexpr int i = decltype(number)::value;
                    put(i, Way::template of_floats<id, i>(atom, h));
                });
            } else {
                constexpr int bits = kFormat<id>.bits, each = 4 / Way::kEach;
                for_each_index<kQuads>([&](auto j) INLINE_LAMBDA {
                    constexpr int quad = decltype(j)::value;
                    const Quad codes = code_quad<bits, quad>(atom, atom + kHighPlane<bits>, h);
                    for_each_index<each>([&](auto number) INLINE_LAMBDA {
                        constexpr int i = decltype(number)::value;
                        put(each * quad + i, Way::template of_codes<id, i>(codes));
                    });
                });
            }
        }
    }

    template <int V>
    static ALWAYS_INLINE void tile(const Strip& s, int vector, const Rows& x, int64_t row, float* y, int64_t y_stride) {
        float_tile<Way, kFormat<id>.codes != Codes::kFloat, kFormat<id>.has_min, V>(s, vector, x, row, y, y_stride);
    }
};
