// Many rows in fp32 compute, included behind fp32-inl.h and many-inl.h. Unpacked weights are floats, so all formats share the
// tiles; those with and without scales and minima differ.

template <bool scaled, bool has_min, int V>
__attribute__((noinline)) void fp32_tile(const Strip& s, int vector, const FloatRows& x, int64_t row, float* y, int64_t y_stride) {
    constexpr int R = kTileRows;
    const float* value[R];
    UNROLL for (int i = 0; i < R; i++) value[i] = x.data + (row + i) * x.stride + s.first_atom * kAtomK;
    const float* weights = reinterpret_cast<const float*>(s.weights) + vector * kLanes;
    const int64_t line = s.line / 4;
    const float *group_scales = s.scales + vector * kLanes, *group_mins = s.mins + vector * kLanes;

    const TileSums<V> t(s);
    t.begin(s, y, y_stride, row + R >= x.m);
    int in_group = s.per_row ? static_cast<int>(s.first_atom) : 0;
    for (int64_t a = 0; a < s.atoms; a++) {
        Floats sum[R][V];
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int v = 0; v < V; v++) sum[i][v] = zero();
        NO_UNROLL for (int k = 0; k < kAtomK; k += 4) {
            for_each_index<4>([&](auto j) INLINE_LAMBDA {
                constexpr int at = decltype(j)::value;
                Floats w[V];
                UNROLL for (int v = 0; v < V; v++) w[v] = load(weights + at * line + v * kLanes);
                UNROLL for (int i = 0; i < R; i++) {
                    const Floats factor = broadcast(value[i] + at);
                    UNROLL for (int v = 0; v < V; v++) sum[i][v] = fma(w[v], factor, sum[i][v]);
                }
            });
            weights += 4 * line;
            UNROLL for (int i = 0; i < R; i++) value[i] += 4;
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
            if constexpr (has_min) activations = sum_of(value[i] - s.group_atoms * kAtomK, s.group_atoms * kAtomK);
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

template <FormatId id>
struct Fp32Many {
    using Rows = FloatRows;
    static constexpr float factor = kFloatFactor<id>;
    static constexpr int kBlockK = 128;  // of a strip: 24 KB
    static constexpr int kLineBytes = 4 * kPanelRows, kAtomLines = kAtomK;

    static ALWAYS_INLINE void unpack_atom(const uint8_t* atom, uint8_t* to, int line) {
        for (int h = 0; h < kHalves; h++) {
            const auto put = [&](int k, Floats v) INLINE_LAMBDA { store(reinterpret_cast<float*>(to + k * line) + h * kLanes, v); };
            if constexpr (kFormat<id>.codes == Codes::kFloat) {
                for_each_index<kAtomK>([&](auto k) INLINE_LAMBDA {
                    constexpr int at = decltype(k)::value;
                    put(at, wide_float<id, at>(atom, h));
                });
            } else {
                constexpr int bits = kFormat<id>.bits;
                for_each_index<kQuads>([&](auto j) INLINE_LAMBDA {
                    constexpr int quad = decltype(j)::value;
                    const Quad codes = code_quad<bits, quad>(atom, atom + kHighPlane<bits>, h);
                    for_each_index<4>([&](auto b) INLINE_LAMBDA {
                        constexpr int byte = decltype(b)::value;
                        put(4 * quad + byte, float_of<id, byte>(codes));
                    });
                });
            }
        }
    }

    template <int V>
    static ALWAYS_INLINE void tile(const Strip& s, int vector, const FloatRows& x, int64_t row, float* y, int64_t y_stride) {
        fp32_tile<kFormat<id>.codes != Codes::kFloat, kFormat<id>.has_min, V>(s, vector, x, row, y, y_stride);
    }
};

template <FormatId id>
void add_fp32_many_format(LinearKernels& k) {
    k.fp32_many[static_cast<int>(id)] = product_many<Fp32Many<id>, id>;
}
