// The tile instructions as the Intel manual describes them (Software Developer's Manual, volume 2, and volume 1 chapter 18 for the
// limits of configurations), so that the tier's kernels run in tests on CPUs without tiles. What the CPU answers with an exception
// ends the process here too.

#define NOT_INLINE __attribute__((noinline))  // or every product of every format would hold a copy

struct TileState {
    bool configured;
    int rows[8], colsb[8];
    uint8_t data[8][16][64];
};
thread_local TileState tiles;

inline void require(bool condition) {
    if (!condition) __builtin_trap();
}

inline void tile_configure(const TileConfig* config) {
    uint8_t bytes[64];
    __builtin_memcpy(bytes, config, 64);
    require(bytes[0] == 1 && bytes[1] == 0);                       // palette 1, start_row 0
    for (int i = 2; i < 16; i++) require(bytes[i] == 0);           // reserved
    for (int i = 32; i < 48; i++) require(bytes[i] == 0);          // colsb of tiles 8 to 15
    for (int i = 56; i < 64; i++) require(bytes[i] == 0);          // rows of tiles 8 to 15
    for (int t = 0; t < 8; t++) {
        const int colsb = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8, rows = bytes[48 + t];
        require(rows <= 16 && colsb <= 64 && (rows == 0) == (colsb == 0));
        tiles.rows[t] = rows;
        tiles.colsb[t] = colsb;
    }
    __builtin_memset(tiles.data, 0, sizeof tiles.data);
    tiles.configured = true;
}
inline void tile_release() {
    __builtin_memset(&tiles, 0, sizeof tiles);
}

template <int t>
inline void usable() {
    static_assert(t >= 0 && t < 8);
    require(tiles.configured && tiles.rows[t] > 0);
}

template <int t>
inline void tile_zero() {
    usable<t>();
    __builtin_memset(tiles.data[t], 0, sizeof tiles.data[t]);
}
template <int t>
NOT_INLINE void tile_load(const void* from, int64_t stride) {
    tile_zero<t>();  // also rows and columns beyond those configured
    for (int r = 0; r < tiles.rows[t]; r++)
        for (int i = 0; i < tiles.colsb[t]; i++) tiles.data[t][r][i] = static_cast<const uint8_t*>(from)[r * stride + i];
}
template <int t>
NOT_INLINE void tile_store(void* to, int64_t stride) {
    usable<t>();
    for (int r = 0; r < tiles.rows[t]; r++)
        for (int i = 0; i < tiles.colsb[t]; i++) static_cast<uint8_t*>(to)[r * stride + i] = tiles.data[t][r][i];
}
// What all multiplications ask of their operands.
template <int c, int a, int b>
inline void multipliable() {
    static_assert(c != a && a != b && c != b);
    usable<a>(), usable<b>(), usable<c>();
    require(tiles.colsb[a] % 4 == 0 && tiles.colsb[b] % 4 == 0 && tiles.colsb[c] % 4 == 0);
    require(tiles.rows[a] == tiles.rows[c] && tiles.colsb[a] / 4 == tiles.rows[b] && tiles.colsb[b] == tiles.colsb[c]);
}
template <int t>
inline void zero_upper_rows() {
    for (int m = tiles.rows[t]; m < 16; m++) __builtin_memset(tiles.data[t][m], 0, 64);
}

template <int c, int a, int b, class OfA, class OfB>
inline void multiply_bytes() {
    multipliable<c, a, b>();
    for (int m = 0; m < tiles.rows[c]; m++) {
        uint32_t sums[16];  // sums wrap
        __builtin_memcpy(sums, tiles.data[c][m], 64);
        for (int k = 0; k < tiles.colsb[a] / 4; k++)
            for (int n = 0; n < tiles.colsb[c] / 4; n++)
                for (int i = 0; i < 4; i++)
                    sums[n] += static_cast<uint32_t>(static_cast<OfA>(tiles.data[a][m][4 * k + i]) *
                                                     static_cast<OfB>(tiles.data[b][k][4 * n + i]));
        __builtin_memcpy(tiles.data[c][m], sums, 64);
    }
    zero_upper_rows<c>();
}
template <int c, int a, int b>
NOT_INLINE void tile_multiply() {
    multiply_bytes<c, a, b, int8_t, int8_t>();
}
template <int c, int a, int b>
NOT_INLINE void tile_multiply_su() {
    multiply_bytes<c, a, b, int8_t, uint8_t>();
}
template <int c, int a, int b>
NOT_INLINE void tile_multiply_us() {
    multiply_bytes<c, a, b, uint8_t, int8_t>();
}
template <int c, int a, int b>
NOT_INLINE void tile_multiply_uu() {
    multiply_bytes<c, a, b, uint8_t, uint8_t>();
}

// Subnormal operands and results are zero (DAZ, FTZ), whatever MXCSR says.
inline float flushed(float v) { return __builtin_fabsf(v) < 0x1p-126f ? __builtin_copysignf(0.0f, v) : v; }
inline float tile_half(const uint8_t* at) {
    uint16_t half;
    __builtin_memcpy(&half, at, 2);
    return flushed(__builtin_bit_cast(float, static_cast<uint32_t>(half) << 16));
}

// Of a row, the products of even and of odd k are summed apart, then added to each other and to what was there.
template <int c, int a, int b>
NOT_INLINE void tile_multiply_bf16() {
    multipliable<c, a, b>();
    for (int m = 0; m < tiles.rows[c]; m++) {
        float sums[16], of_row[16][2] = {};
        __builtin_memcpy(sums, tiles.data[c][m], 64);
        for (int k = 0; k < tiles.colsb[a] / 4; k++)
            for (int n = 0; n < tiles.colsb[c] / 4; n++)
                for (int i = 0; i < 2; i++)
                    of_row[n][i] = flushed(__builtin_fmaf(tile_half(&tiles.data[a][m][4 * k + 2 * i]),
                                                          tile_half(&tiles.data[b][k][4 * n + 2 * i]), of_row[n][i]));
        for (int n = 0; n < tiles.colsb[c] / 4; n++) sums[n] = flushed(flushed(sums[n]) + flushed(of_row[n][0] + of_row[n][1]));
        __builtin_memcpy(tiles.data[c][m], sums, static_cast<size_t>(tiles.colsb[c]));
    }
    zero_upper_rows<c>();
}
