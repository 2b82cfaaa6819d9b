// The tile of int8 compute for many rows, included between many-inl.h and int8_many-inl.h.

// kTileRows rows from `row` of full blocks of x (kMaxKernelRows rows interleaved) times V vectors of a strip.
template <FormatId like, int V>
__attribute__((noinline)) void int8_tile(const Strip& s, int vector, const QuantizedRows& x, int64_t row, float* y,
                                         int64_t y_stride) {
    constexpr int R = kTileRows, width = kMaxKernelRows;
    constexpr bool has_min = kFormat<like>.has_min;
    const int64_t lane = row % width, first = (row - lane) * x.k_padded + s.first_atom * kAtomK * width;
    const int8_t* codes = x.codes + first + 4 * lane;
    const float* scales = x.scales + first / kAtomK + lane;
    const int32_t* sums = x.sums + first / kAtomK + lane;
    const int64_t next_block = row + width < x.m ? width * x.k_padded : 0;  // prefetched: the rows of the next tiles
    const uint8_t* weights = s.weights + vector * kQuadBytes;
    const float *group_scales = s.scales + vector * kLanes, *group_mins = s.mins + vector * kLanes;

    TileSums<V> t;
    t.begin(s, y, y_stride, row + R >= x.m);
    int in_group = s.per_row ? static_cast<int>(s.first_atom) : 0;
    for (int64_t a = 0; a < s.atoms; a++) {
        Dot<like> dot[R][V];
        UNROLL for (int i = 0; i < R; i++) {
            const Dot<like> start = Dot<like>::start(sums + i);
            UNROLL for (int v = 0; v < V; v++) dot[i][v] = start;
        }
        for_each_index<kQuads - 1>([&](auto j) INLINE_LAMBDA {
            constexpr int quad = decltype(j)::value;
            Quad w[V];
            UNROLL for (int v = 0; v < V; v++) w[v] = load_quad(weights + quad * s.line + v * kQuadBytes);
            UNROLL for (int i = 0; i < R; i++) {
                const Quad four = broadcast_four(codes + 4 * (quad * width + i));
                UNROLL for (int v = 0; v < V; v++) dot[i][v].template add<quad>(w[v], four);
            }
        });
        UNROLL for (int i = 0; i < kAtomK * R / kLine; i++)
            prefetch(reinterpret_cast<const uint8_t*>(codes + next_block + i * kLine));
        prefetch(reinterpret_cast<const uint8_t*>(scales + next_block / kAtomK));
        prefetch(reinterpret_cast<const uint8_t*>(sums + next_block / kAtomK));

        const auto drain = [&](auto is_first, auto is_last) INLINE_LAMBDA {
            constexpr bool opens = decltype(is_first)::value, closes = decltype(is_last)::value;
            [[maybe_unused]] float sum[R];
            if constexpr (closes && has_min) {
                UNROLL for (int i = 0; i < R; i++) sum[i] = 0;
                for (int64_t g = -width * (s.group_atoms - 1); g <= 0; g += width)
                    UNROLL for (int i = 0; i < R; i++) sum[i] += scales[g + i] * static_cast<float>(sums[g + i]);
            }
            // The last quad of a row is followed by the settling of its sums, so that both kinds of work are under way at once.
            constexpr int quad = kQuads - 1;
            Quad w[V];
            UNROLL for (int v = 0; v < V; v++) w[v] = load_quad(weights + quad * s.line + v * kQuadBytes);
            UNROLL for (int i = 0; i < R; i++) {
                const Quad four = broadcast_four(codes + 4 * (quad * width + i));
                UNROLL for (int v = 0; v < V; v++) dot[i][v].template add<quad>(w[v], four);
                UNROLL for (int v = 0; v < V; v++) {
                    const Floats d = to_floats(dot[i][v].finish(sums + i));
                    float* part = t.part + t.at(i, v);
                    const Floats p = opens ? multiply(d, scales + i) : fma(d, broadcast(scales + i), load(part));
                    if constexpr (closes) {
                        float* total = t.total + t.at(i, v);
                        Floats sum_so_far = fma(p, load(group_scales + v * kLanes), load(total));
                        if constexpr (has_min) sum_so_far = fma(load(group_mins + v * kLanes), broadcast(sum + i), sum_so_far);
                        store(total, sum_so_far);
                    } else {
                        store(part, p);
                    }
                }
            }
        };
        const bool opens = in_group == 0, closes = in_group == s.group_atoms - 1;
        if (opens && closes) drain(Index<1>{}, Index<1>{});
        else if (opens) drain(Index<1>{}, Index<0>{});
        else if (closes) drain(Index<0>{}, Index<1>{});
        else drain(Index<0>{}, Index<0>{});
        in_group = closes ? 0 : in_group + 1;
        if (closes) {
            group_scales += s.vectors * kLanes;
            group_mins += s.vectors * kLanes;
        }
        weights += kQuads * s.line;
        codes += kAtomK * width;
        scales += width;
        sums += width;
    }
    t.end(s, y, y_stride);
}
