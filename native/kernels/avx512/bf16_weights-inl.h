// What two codes of every row mean as bf16: lines as vdpbf16ps and tiles take them. Codes of nf3 and nf4 mean numbers that are rounded;
// all others are exact. Included behind code_floats-inl.h.

// The upper half of a float, which is to nearest even what bf16 makes of it.
consteval uint16_t bf16_of(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <FormatId id>
consteval Table<uint16_t, 64> bf16_table() {
    constexpr auto values = float_table<id, 64>();
    Table<uint16_t, 64> table{};
    for (int i = 0; i < 64; i++) table.at[i] = bf16_of(values.at[i]);
    return table;
}

// What float-inl.h and float_many-inl.h ask of a Way, but for multiplications and sums.
struct Bf16Weights {
    using Rows = HalfRows;
    using Value = uint16_t;
    using Weights = __m512i;
    static constexpr int kEach = 2;
    template <FormatId id>
    static constexpr float factor = kFloatFactor<id>;

    // Of the codes of k = 2i and 2i + 1 of a quad.
    template <FormatId id, int i>
    static ALWAYS_INLINE Weights of_codes(Quad codes) {
        if constexpr (kFormat<id>.bits <= 6) {
            // Each code in a half of its lane; what is above its bits the permutes ignore, or (6 bits) is zero.
            static constexpr auto table = bf16_table<id>();
            const __m512i spread = _mm512_set1_epi32(i == 0 ? 0x80018000 : 0x80038002);
            const __m512i of_lane = _mm512_set4_epi32(0x000c000c, 0x00080008, 0x00040004, 0);
            const __m512i index = _mm512_shuffle_epi8(codes, _mm512_or_si512(spread, of_lane));
            const __m512i low = _mm512_load_si512(table.at);
            if constexpr (kFormat<id>.bits <= 5) return _mm512_permutexvar_epi16(index, low);
            return _mm512_permutex2var_epi16(low, index, _mm512_load_si512(table.at + 32));
        } else {
            const __m512i even = _mm512_castps_si512(float_of<id, 2 * i>(codes)), odd = _mm512_castps_si512(float_of<id, 2 * i + 1>(codes));
            return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even, 16), odd);
        }
    }
    // The line of the same k in an atom of bf16 weights.
    template <FormatId id, int i>
    static ALWAYS_INLINE Weights of_floats(const uint8_t* atom, int) {
        static_assert(id == FormatId::bf16);
        return load_quad(atom + kLine * i);
    }
    static ALWAYS_INLINE void store_weights(uint8_t* p, Weights w) { store_quad(p, w); }
};
