// The tile of int8 compute for many rows, included between many-inl.h and int8_many-inl.h.

// kTileRows rows from `row` of full blocks of x (kMaxKernelRows rows interleaved) times V vectors of a strip.
template <FormatId like, int V>
__attribute__((noinline)) void int8_tile(const Strip& s, int vector, const QuantizedRows& x, int64_t row, float* y,
                                         int64_t y_stride) {
    constexpr int R = kTileRows, width = kMaxKernelRows, kPair = kActivationK / kAtomK;
    constexpr bool has_min = kFormat<like>.has_min;
    const int64_t lane = row % width, block = row - lane;
    const int8_t* codes = x.codes + block * x.k_padded + s.first_atom * kAtomK * width + 4 * lane;
    const float* scales = x.scales + block * (x.k_padded / kActivationK) + lane;  // of the whole row
    const int32_t* sums = x.sums + block * (x.k_padded / kAtomK) + lane;
    const uint8_t* weights = s.weights + vector * kQuadBytes;
    const float *group_scales = s.scales + vector * kLanes, *group_mins = s.mins + vector * kLanes;

    const TileSums<V> t(s);
    t.begin(s, y, y_stride, row + R >= x.m);
    int in_group = s.per_row ? static_cast<int>(s.first_atom) : 0;
    const auto multiply_atoms = [&](auto number) INLINE_LAMBDA {
        constexpr int together = decltype(number)::value;
        for (int64_t a = s.first_atom; a < s.first_atom + s.atoms; a += together) {
            const int32_t* sum = sums + a * width;
            const float* scale = scales + a / kPair * width;
            Dot<like> dot[R][V];
            UNROLL for (int i = 0; i < R; i++) {
                const Dot<like> start = Dot<like>::start(activation_sum<together>(sum + i, width));
                UNROLL for (int v = 0; v < V; v++) dot[i][v] = start;
            }
            for_each_index<kQuads * together - 1>([&](auto j) INLINE_LAMBDA {
                constexpr int quad = decltype(j)::value;
                Quad w[V];
                UNROLL for (int v = 0; v < V; v++) w[v] = load_quad(weights + quad * s.line + v * kQuadBytes);
                UNROLL for (int i = 0; i < R; i++) {
                    const Quad four = broadcast_four(codes + 4 * (quad * width + i));
                    UNROLL for (int v = 0; v < V; v++) dot[i][v].template add<quad>(w[v], four);
                }
            });
            const auto drain = [&](auto is_first, auto is_last) INLINE_LAMBDA {
                constexpr bool opens = decltype(is_first)::value, closes = decltype(is_last)::value;
                [[maybe_unused]] float x_sum[R];  // of the group
                if constexpr (closes && has_min) {
                    UNROLL for (int i = 0; i < R; i++) x_sum[i] = 0;
                    for (int64_t b = a - in_group; b < a - in_group + s.group_atoms; b++)
                        UNROLL for (int i = 0; i < R; i++)
                            x_sum[i] += scales[b / kPair * width + i] * static_cast<float>(sums[b * width + i]);
                }
                // The last quad of a row is followed by the settling of its sums, so that both kinds of work are under way at once.
                constexpr int quad = kQuads * together - 1;
                Quad w[V];
                UNROLL for (int v = 0; v < V; v++) w[v] = load_quad(weights + quad * s.line + v * kQuadBytes);
                UNROLL for (int i = 0; i < R; i++) {
                    const Quad four = broadcast_four(codes + 4 * (quad * width + i));
                    UNROLL for (int v = 0; v < V; v++) dot[i][v].template add<quad>(w[v], four);
                    UNROLL for (int v = 0; v < V; v++) {
                        const Floats d = to_floats(dot[i][v].finish(activation_sum<together>(sum + i, width)));
                        float* part = t.part + t.at(i, v);
                        const Floats p = opens ? multiply(d, scale + i) : fma(d, broadcast(scale + i), load(part));
                        if constexpr (closes) {
                            float* total = t.total + t.at(i, v);
                            Floats sum_so_far = fma(p, load(group_scales + v * kLanes), load(total));
                            if constexpr (has_min)
                                sum_so_far = fma(load(group_mins + v * kLanes), broadcast(x_sum + i), sum_so_far);
                            store(total, sum_so_far);
                        } else {
                            store(part, p);
                        }
                    }
                }
            };
            const bool opens = in_group == 0, closes = in_group + together >= s.group_atoms;
            with_ends(opens, closes, drain);
            in_group = closes ? 0 : in_group + together;
            if (closes) {
                group_scales += s.vectors * kLanes;
                group_mins += s.vectors * kLanes;
            }
            weights += together * kQuads * s.line;
            codes += together * kAtomK * width;
        }
    };
    if (s.pairs) multiply_atoms(Index<kPair>{});
    else multiply_atoms(Index<1>{});
    t.end(s, y, y_stride);
}
