// Many rows in int8 compute, included behind int8-inl.h and many-inl.h. The including file provides
//   kIntegerBlockK: k of a strip that are unpacked at once, so that they stay in L1;
//   kLike<id>: a format whose unpacked integers are multiplied by the same instructions, so that formats share tiles.

template <FormatId id>
struct Int8Many {
    using Rows = QuantizedRows;
    static constexpr float factor = kInteger<id>.factor;
    static constexpr int kBlockK = kIntegerBlockK;
    static constexpr bool kWholeRows = false;
    static constexpr int kLineBytes = kLine, kAtomLines = kQuads;

    static ALWAYS_INLINE void unpack_atom(const uint8_t* atom, uint8_t* to, int line) {
        constexpr int bits = kFormat<id>.bits;
        for (int h = 0; h < kHalves; h++)
            for_each_index<kQuads>([&](auto j) INLINE_LAMBDA {
                constexpr int quad = decltype(j)::value;
                const Quad codes = code_quad<bits, quad>(atom, atom + kHighPlane<bits>, h);
                store_quad(to + quad * line + h * kQuadBytes, to_integers<id>(codes));
            });
    }

    template <int V>
    static ALWAYS_INLINE void tile(const Strip& s, int vector, const QuantizedRows& x, int64_t row, float* y, int64_t y_stride) {
        int8_tile<kLike<id>, V>(s, vector, x, row, y, y_stride);
    }
};

template <FormatId id>
void add_int8_many_format(LinearKernels& k) {
    if constexpr (kHasInt8<id>) k.int8_many[static_cast<int>(id)] = product_many<Int8Many<id>, id>;
}
