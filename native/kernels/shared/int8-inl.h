// int8 compute: int8 activations times the integer weights of an atom. The including file provides
//   int8_panels(M): panels whose sums for M rows fit in the registers; to_integers<id>(codes);
//   Dot<id>: start(&sum), add<quad>(weights, activations), Ints finish(&sum); sum is that of the 32 activations.

template <FormatId id>
struct Int8Product {
    using Rows = QuantizedRows;
    static constexpr float factor = kInteger<id>.factor;
    static constexpr int panels(int m) { return int8_panels(m); }

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
        constexpr int bits = kFormat<id>.bits;
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
                    const Quad w = to_integers<id>(code_quad<bits, quad>(atom[p], atom[p] + kHighPlane<bits>, half));
                    UNROLL for (int i = 0; i < M; i++) dot[p][i].template add<quad>(w, four[i]);
                }
            } else {
                Quad w[P];
                UNROLL for (int p = 0; p < P; p++) w[p] = to_integers<id>(code_quad<bits, quad>(atom[p], atom[p] + kHighPlane<bits>, half));
                UNROLL for (int i = 0; i < M; i++) {
                    const Quad four = broadcast_four(codes + 4 * (quad * M + i));
                    UNROLL for (int p = 0; p < P; p++) dot[p][i].template add<quad>(w[p], four);
                }
            }
        });
        UNROLL for (int i = 0; i < M; i++) {
            const Floats scale = broadcast(scales + i);
            UNROLL for (int p = 0; p < P; p++) part[p][i] = fma(to_floats(dot[p][i].finish(sums + i)), scale, part[p][i]);
        }
    }
};

template <FormatId id>
void add_int8_format(LinearKernels& k) {
    if constexpr (kHasInt8<id>) k.int8[static_cast<int>(id)] = product<Int8Product<id>, id>;
}
