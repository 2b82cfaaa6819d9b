// int8 compute: int8 activations times the integer weights of an atom. The including file provides
//   int8_panels(M): panels whose sums for M rows fit in the registers; to_integers<id>(codes);
//   Dot<id>: start(sum), add<quad>(weights, activations), Ints finish(sum), where sum has the sum of the activations in every lane.

// The sum of the activations of `atoms` atoms, whose sums are `width` apart.
template <int atoms>
ALWAYS_INLINE Ints activation_sum(const int32_t* sums, int width) {
    static_assert(atoms == 1 || atoms == 2);
    if constexpr (atoms == 1) return broadcast_int(sums);
    else return add_ints(broadcast_int(sums), broadcast_int(sums + width));
}

template <FormatId id>
struct Int8Product {
    using Rows = QuantizedRows;
    static constexpr float factor = kInteger<id>.factor;
    static constexpr int panels(int m) { return int8_panels(m); }
    static constexpr int kTogether = kActivationK / kAtomK;  // atoms whose integers are added up before a scale is applied
    static bool together(const Layout& l) { return sums_pairs(l); }

    // M interleaved rows: see QuantizedRows.
    template <int M>
    struct Input {
        const int8_t* codes;
        const float* scales;
        const int32_t* sums;

        Input(const Rows& x, int64_t first_row, int)
            : codes(x.codes + first_row * x.k_padded),
              scales(x.scales + first_row * (x.k_padded / kActivationK)),
              sums(x.sums + first_row * (x.k_padded / kAtomK)) {}
        // Sum of the activations [k, k + count) of row i.
        float sum(int i, int64_t k, int count) const {
            float s = 0;
            for (int64_t g = k / kAtomK; g < (k + count) / kAtomK; g++)
                s += scales[g / kTogether * M + i] * static_cast<float>(sums[g * M + i]);
            return s;
        }
    };

    // part[p][i] += products of one half of `atoms` atoms of P panels with rows i of x at k, which share a scale. Calls fetch for every
    // quad.
    template <int M, int P, int atoms, class Fetch>
    static ALWAYS_INLINE void add_atoms(const uint8_t* const (&atom)[P], int half, const Input<M>& x, int64_t k,
                                       Floats (&part)[P][M], Fetch fetch) {
        constexpr int bits = kFormat<id>.bits;
        const int8_t* codes = x.codes + k * M;
        const float* scales = x.scales + k / kActivationK * M;
        const int32_t* sums = x.sums + k / kAtomK * M;
        Dot<id> dot[P][M];
        UNROLL for (int i = 0; i < M; i++) {
            const Dot<id> start = Dot<id>::start(activation_sum<atoms>(sums + i, M));
            UNROLL for (int p = 0; p < P; p++) dot[p][i] = start;
        }
        for_each_index<kQuads * atoms>([&](auto j) INLINE_LAMBDA {
            constexpr int quad = decltype(j)::value, in_atom = quad % kQuads, offset = quad / kQuads * kAtomBytes<id>;
            fetch(j);
            const auto weights = [&](int p) INLINE_LAMBDA {
                const uint8_t* low = atom[p] + offset;
                return to_integers<id>(code_quad<bits, in_atom>(low, low + kHighPlane<bits>, half));
            };
            if constexpr (M <= P) {  // hold the smaller side of the block in registers
                Quad four[M];
                UNROLL for (int i = 0; i < M; i++) four[i] = broadcast_four(codes + 4 * (quad * M + i));
                UNROLL for (int p = 0; p < P; p++) {
                    const Quad w = weights(p);
                    UNROLL for (int i = 0; i < M; i++) dot[p][i].template add<quad>(w, four[i]);
                }
            } else {
                Quad w[P];
                UNROLL for (int p = 0; p < P; p++) w[p] = weights(p);
                UNROLL for (int i = 0; i < M; i++) {
                    const Quad four = broadcast_four(codes + 4 * (quad * M + i));
                    UNROLL for (int p = 0; p < P; p++) dot[p][i].template add<quad>(w[p], four);
                }
            }
        });
        UNROLL for (int i = 0; i < M; i++) {
            const Floats scale = broadcast(scales + i);
            UNROLL for (int p = 0; p < P; p++) part[p][i] = fma(to_floats(dot[p][i].finish(activation_sum<atoms>(sums + i, M))), scale, part[p][i]);
        }
    }
};

template <FormatId id>
void add_int8_format(LinearKernels& k) {
    if constexpr (kHasInt8<id>) k.int8[static_cast<int>(id)] = product<Int8Product<id>, id>;
}
