// fp32 compute: the exact float values of an atom times fp32 activations. The including file provides
//   fp32_panels(M): panels whose sums for M rows fit in the registers; float_of<id, b>(codes), in units of kFloatFactor<id>;
//   wide_float<id, k>(atom, half) for bf16, fp16 and fp32.

template <FormatId id>
struct Fp32Product {
    using Rows = FloatRows;
    static constexpr float factor = kFloatFactor<id>;
    static constexpr int panels(int m) { return fp32_panels(m); }
    static constexpr int kTogether = 1;
    static bool together(const Layout&) { return false; }

    template <int M>
    struct Input {
        const float* x[M];

        // Of fewer than M rows, the last is multiplied several times.
        Input(const Rows& rows, int64_t first_row, int m) {
            for (int i = 0; i < M; i++) x[i] = rows.data + (first_row + (i < m ? i : m - 1)) * rows.stride;
        }
        float sum(int i, int64_t k, int count) const { return sum_of(x[i] + k, count); }
    };

    template <int M, int P, int, class Fetch>
    static ALWAYS_INLINE void add_atoms(const uint8_t* const (&atom)[P], int half, const Input<M>& x, int64_t k,
                                       Floats (&part)[P][M], Fetch fetch) {
        for_each_index<kQuads>(fetch);
        // One sum per output whatever M is: a row's result does not depend on the batch it is in.
        Floats sum[P][M];
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int i = 0; i < M; i++) sum[p][i] = zero();
        const float* value[M];
        UNROLL for (int i = 0; i < M; i++) value[i] = x.x[i] + k;
        const auto add_k = [&](auto at, const Floats(&w)[P]) INLINE_LAMBDA {
            constexpr int offset = decltype(at)::value;
            UNROLL for (int i = 0; i < M; i++) {
                const Floats v = broadcast(value[i] + offset);
                UNROLL for (int p = 0; p < P; p++) sum[p][i] = fma(w[p], v, sum[p][i]);
            }
        };
        // A loop over whole lines of the lowest plane, because a whole atom unrolled is larger than the instruction cache.
        constexpr int bits = kFormat<id>.bits, quads = bits == 3 || bits == 6 ? 4 : 2;
        constexpr bool wide = kFormat<id>.codes == Codes::kFloat;
        constexpr int low_step = wide ? quads * kPanelRows * 4 * bits / 8 : kLine * quads / (bits == 8 ? 1 : bits == 3 ? 4 : 2);
        constexpr int high_step = bits == 6 ? kLine : 8 * quads;
        int64_t low = 0, high = kHighPlane<bits>;
        NO_UNROLL for (int q = 0; q < kQuads; q += quads, low += low_step, high += high_step) {
            if constexpr (wide) {
                for_each_index<4 * quads>([&](auto at) INLINE_LAMBDA {
                    Floats w[P];
                    UNROLL for (int p = 0; p < P; p++) w[p] = wide_float<id, decltype(at)::value>(atom[p] + low, half);
                    add_k(at, w);
                });
            } else {
                for_each_index<quads>([&](auto j) INLINE_LAMBDA {
                    constexpr int quad = decltype(j)::value;
                    Quad codes[P];
                    UNROLL for (int p = 0; p < P; p++) codes[p] = code_quad<bits, quad>(atom[p] + low, atom[p] + high, half);
                    for_each_index<4>([&](auto b) INLINE_LAMBDA {
                        constexpr int byte = decltype(b)::value;
                        Floats w[P];
                        UNROLL for (int p = 0; p < P; p++) w[p] = float_of<id, byte>(codes[p]);
                        add_k(Index<4 * quad + byte>{}, w);
                    });
                });
            }
            UNROLL for (int i = 0; i < M; i++) value[i] += 4 * quads;
        }
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int i = 0; i < M; i++) part[p][i] = add(part[p][i], sum[p][i]);
    }
};

template <FormatId id>
void add_fp32_format(LinearKernels& k) {
    k.fp32[static_cast<int>(id)] = product<Fp32Product<id>, id>;
}
