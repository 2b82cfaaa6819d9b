// Products whose sums are floats: the values that codes mean times activations. The including file provides panels_of_floats(M), the
// panels whose sums for M rows fit in the registers, and a Way to multiply (fp32-inl.h, avx512/bf16_weights-inl.h):
//   Rows of Values; Weights and Activations, for kEach k of every row; Sum of their products and its total; factor<id>, which results are
//   to be multiplied by;
//   of_codes<id, i>(quad), of_floats<id, i>(atom, half): the weights of k from i * kEach on; load_weights, store_weights; activations(x): of kEach k,
//   for every lane; add_product(weights, activations, sum); sum_of_values(x, count).

template <class Way, FormatId id>
struct FloatProduct {
    using Rows = typename Way::Rows;
    using Value = typename Way::Value;
    static constexpr float factor = Way::template factor<id>;
    static constexpr int panels(int m) { return panels_of_floats(m); }
    static constexpr int kTogether = 1;
    static bool together(const Layout&) { return false; }

    template <int M>
    struct Input {
        const Value* x[M];

        // Of fewer than M rows, the last is multiplied several times.
        Input(const Rows& rows, int64_t first_row, int m) {
            for (int i = 0; i < M; i++) x[i] = rows.data + (first_row + (i < m ? i : m - 1)) * rows.stride;
        }
        float sum(int i, int64_t k, int count) const { return Way::sum_of_values(x[i] + k, count); }
    };

    template <int M, int P, int, class Fetch>
    static ALWAYS_INLINE void add_atoms(const uint8_t* const (&atom)[P], int half, const Input<M>& x, int64_t k,
                                       Floats (&part)[P][M], Fetch fetch) {
        for_each_index<kQuads>(fetch);
        // One sum per output whatever M is: a row's result does not depend on the batch it is in.
        typename Way::Sum sum[P][M];
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int i = 0; i < M; i++) sum[p][i] = Way::no_sum();
        const Value* value[M];
        UNROLL for (int i = 0; i < M; i++) value[i] = x.x[i] + k;
        using Weights = typename Way::Weights;
        const auto add_k = [&](auto at, const Weights(&w)[P]) INLINE_LAMBDA {
            constexpr int offset = decltype(at)::value;
            UNROLL for (int i = 0; i < M; i++) {
                const auto v = Way::activations(value[i] + offset);
                UNROLL for (int p = 0; p < P; p++) sum[p][i] = Way::add_product(w[p], v, sum[p][i]);
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
                for_each_index<4 * quads / Way::kEach>([&](auto number) INLINE_LAMBDA {
                    constexpr int i = decltype(number)::value;
                    Weights w[P];
                    UNROLL for (int p = 0; p < P; p++) w[p] = Way::template of_floats<id, i>(atom[p] + low, half);
                    add_k(Index<i * Way::kEach>{}, w);
                });
            } else {
                for_each_index<quads>([&](auto j) INLINE_LAMBDA {
                    constexpr int quad = decltype(j)::value;
                    Quad codes[P];
                    UNROLL for (int p = 0; p < P; p++) codes[p] = code_quad<bits, quad>(atom[p] + low, atom[p] + high, half);
                    for_each_index<4 / Way::kEach>([&](auto number) INLINE_LAMBDA {
                        constexpr int i = decltype(number)::value;
                        Weights w[P];
                        UNROLL for (int p = 0; p < P; p++) w[p] = Way::template of_codes<id, i>(codes[p]);
                        add_k(Index<4 * quad + i * Way::kEach>{}, w);
                    });
                });
            }
            UNROLL for (int i = 0; i < M; i++) value[i] += 4 * quads;
        }
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int i = 0; i < M; i++) part[p][i] = add(part[p][i], Way::total(sum[p][i]));
    }
};
