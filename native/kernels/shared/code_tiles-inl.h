// Attention over codes in tiles (code_tiles.h): the body of the amx tier and of its model, which differ in their tile_ops-inl.h alone.

#include "avx512/floats-inl.h"

#include "shared/fetch-inl.h"

// Tile registers: sums 0 to 3; rows, high 4 and low 5; lines, high 6 and low 7.
void begin() { tile_configure(&kWholeTiles); }
void end() { tile_release(); }

constexpr int64_t tiles_along(int64_t n) { return (n + kTileK - 1) / kTileK; }

// ---- bytes apart ----------------------------------------------------------------------------------------------------

struct alignas(kLine) BytePlaces {
    uint8_t at[64];
};
// Of a row's codes: byte `odd` of each.
constexpr BytePlaces bytes_of_row(int odd) {
    BytePlaces places{};
    for (int i = 0; i < 64; i++) places.at[i] = static_cast<uint8_t>(2 * i + odd);
    return places;
}
// Of two lines of pairs of 16 columns, the second of which begins at 64: byte `odd` of the four codes of each column.
constexpr BytePlaces bytes_of_lines(int odd) {
    BytePlaces places{};
    for (int i = 0; i < 64; i++) places.at[i] = static_cast<uint8_t>(i % 4 / 2 * 64 + i / 4 * 4 + i % 2 * 2 + odd);
    return places;
}
constexpr BytePlaces kRowBytes[2] = {bytes_of_row(0), bytes_of_row(1)}, kLineBytes[2] = {bytes_of_lines(0), bytes_of_lines(1)};

inline void store_bytes(uint8_t* to, const BytePlaces& places, __m512i a, __m512i b) {
    _mm512_storeu_si512(to, _mm512_permutex2var_epi8(a, _mm512_load_si512(places.at), b));
}

void split_rows(const int16_t* codes, int64_t rows, int64_t n, uint8_t* planes) {
    constexpr int kCodes = kLine / 2;
    const int64_t tiles = tiles_along(n);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < tiles; i++) {
            const auto part = [&](int64_t from) INLINE_LAMBDA {
                const __mmask32 there = n - from >= kCodes ? ~0u : from < n ? (1u << (n - from)) - 1 : 0;
                return _mm512_maskz_loadu_epi16(there, codes + r * n + from);
            };
            const __m512i a = part(i * kTileK), b = part(i * kTileK + kCodes);
            uint8_t* to = planes + (r / kTileBlockRows * tiles + i) * 2 * kTileBytes + r % kTileBlockRows * kTileK;
            store_bytes(to, kRowBytes[1], a, b);
            store_bytes(to + kTileBytes, kRowBytes[0], a, b);
        }
}

template <KvType type>
void split_lines_of(const void* codes, int64_t n, int64_t columns, uint8_t* planes) {
    constexpr int64_t kSize = kv_type_size(type);
    const int64_t tiles = tiles_along(n), line = 2 * columns * kSize;
    for (int64_t quad = 0; quad < tiles * kTileBlockRows; quad++)
        for (int64_t c = 0; c < columns; c += kPanelRows) {
            const auto pairs = [&](int64_t i) INLINE_LAMBDA {
                const uint8_t* from = static_cast<const uint8_t*>(codes) + i * line + 2 * c * kSize;
                if (2 * i >= n) return _mm512_setzero_si512();
                if constexpr (type == KvType::int16) return _mm512_loadu_si512(from);
                return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
            };
            const __m512i a = pairs(2 * quad), b = pairs(2 * quad + 1);
            uint8_t* to = planes + (c / kPanelRows * tiles + quad / kTileBlockRows) * kSize * kTileBytes + quad % kTileBlockRows * kTileK;
            if constexpr (type == KvType::int16) {
                store_bytes(to, kLineBytes[1], a, b);
                store_bytes(to + kTileBytes, kLineBytes[0], a, b);
            } else {
                const __m512i both = _mm512_inserti64x4(a, _mm512_castsi512_si256(b), 1);
                const __m512i beside = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                                         0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
                _mm512_storeu_si512(to, _mm512_permutexvar_epi16(beside, both));
            }
        }
}

void split_lines(const void* codes, KvType type, int64_t n, int64_t columns, uint8_t* planes) {
    (type == KvType::int16 ? split_lines_of<KvType::int16> : split_lines_of<KvType::int8>)(codes, n, columns, planes);
}

// ---- products -------------------------------------------------------------------------------------------------------

// What the products of bytes of 16 rows with 16 columns sum to: high with high, high with low and low with high, low with low; for
// lines of 8 bits high with them and low with them. A product waits long for the one before it in the same tile, so where each tile has
// several, those of high and low stay apart.
template <KvType type, bool apart>
struct alignas(kLine) ByteSums {
    static constexpr int kTiles = type == KvType::int8 ? 2 : apart ? 4 : 3;
    int32_t at[kTiles][kTileBlockRows][kPanelRows];

    ALWAYS_INLINE __m512i of(int tile, int64_t row) const { return _mm512_load_si512(at[tile][row]); }
    // The sums of products of codes; they are below 2^31, and on the way to them overflow may come and go.
    ALWAYS_INLINE Floats codes(int64_t row) const {
        const auto times_256 = [](__m512i v) INLINE_LAMBDA { return _mm512_slli_epi32(v, 8); };
        __m512i sums = _mm512_add_epi32(times_256(of(0, row)), of(1, row));
        if constexpr (apart) sums = _mm512_add_epi32(sums, of(3, row));
        if constexpr (type == KvType::int16) sums = _mm512_add_epi32(times_256(sums), of(2, row));
        return _mm512_cvtepi32_ps(sums);
    }
};

// One column of tiles times one row of them.
template <KvType type, bool apart>
ALWAYS_INLINE void multiply_bytes_of(const uint8_t* rows, const uint8_t* lines, int64_t tiles, bool load_rows,
                                     ByteSums<type, apart>& sums) {
    static_assert(!apart || type == KvType::int16);
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (type == KvType::int16) tile_zero<2>();
    if constexpr (apart) tile_zero<3>();
    for (int64_t i = 0; i < tiles; i++, rows += 2 * kTileBytes, lines += kv_type_size(type) * kTileBytes) {
        if (load_rows) {
            tile_load<4>(rows, kTileK);
            tile_load<5>(rows + kTileBytes, kTileK);
        }
        tile_load<6>(lines, kTileK);
        if constexpr (type == KvType::int16) {
            tile_load<7>(lines + kTileBytes, kTileK);
            tile_multiply_su<1, 4, 7>();
            tile_multiply<0, 4, 6>();
            tile_multiply_uu<2, 5, 7>();
            tile_multiply_us<apart ? 3 : 1, 5, 6>();
        } else {
            tile_multiply<0, 4, 6>();
            tile_multiply_us<1, 5, 6>();
        }
    }
    tile_store<0>(sums.at[0], kLine);
    if constexpr (type == KvType::int16) tile_store<2>(sums.at[2], kLine);
    tile_store<1>(sums.at[1], kLine);
    if constexpr (apart) tile_store<3>(sums.at[3], kLine);
}

// Calls settle(column, sums) for 16 columns after 16 columns; the tiles of the next are under way meanwhile.
template <KvType type, bool apart, class Settle>
ALWAYS_INLINE void products(const uint8_t* rows, const uint8_t* lines, int64_t tiles, int64_t columns, Settle settle) {
    ByteSums<type, apart> sums[2];
    multiply_bytes_of(rows, lines, tiles, true, sums[0]);
    for (int64_t c = 0, side = 0; c < columns; c += kPanelRows, side ^= 1) {
        lines += tiles * kv_type_size(type) * kTileBytes;
        if (c + kPanelRows < columns) multiply_bytes_of(rows, lines, tiles, tiles > 1, sums[side ^ 1]);
        settle(c, sums[side]);
    }
}

// Of `bytes`, evenly in `steps`.
inline Fetch fetch_in_steps(const uint8_t* next, int64_t bytes, int64_t steps) {
    if (next) Fetch::scales(next + bytes);
    return {next, steps, (bytes + steps - 1) / steps, 1, 0};
}

template <KvType type, bool apart>
void scores_of(const uint8_t* q, const float* q_scales, int64_t rows, const uint8_t* keys, const float* scales, int64_t count,
               int64_t dim, float* scores, const uint8_t* next) {
    const int64_t columns = (count + kPanelRows - 1) / kPanelRows * kPanelRows;
    Fetch fetch = fetch_in_steps(next, dim * kKvBlock * kv_type_size(type), columns / kPanelRows * rows);
    products<type, apart>(q, keys, tiles_along(dim), columns, [&](int64_t c, const auto& sums) INLINE_LAMBDA {
        const Floats scale = load(scales + c);
        NO_UNROLL for (int64_t r = 0; r < rows; r++) {
            fetch.step();
            store(scores + r * kKvBlock + c, mul(mul(sums.codes(r), scale), broadcast(q_scales[r])));
        }
    });
}

void scores(const uint8_t* q, const float* q_scales, int64_t rows, const uint8_t* keys, KvType type, const float* scales, int64_t count,
            int64_t dim, float* scores, const uint8_t* next) {
    const auto of = type == KvType::int8 ? scores_of<KvType::int8, false>
                    : dim > kTileK       ? scores_of<KvType::int16, true>
                                         : scores_of<KvType::int16, false>;
    of(q, q_scales, rows, keys, scales, count, dim, scores, next);
}

template <KvType type>
void values_of(const uint8_t* weights, int64_t rows, const uint8_t* values, int64_t dim, const RowSoftmax* state, float* out,
               const uint8_t* next) {
    Fetch fetch = fetch_in_steps(next, dim * kKvBlock * kv_type_size(type), dim / kPanelRows * rows);
    products<type, false>(weights, values, tiles_along(kKvBlock), dim, [&](int64_t d, const auto& sums) INLINE_LAMBDA {
        NO_UNROLL for (int64_t r = 0; r < rows; r++) {
            fetch.step();
            float* to = out + r * dim + d;
            store(to, fma(sums.codes(r), broadcast(state[r].factor), mul(load(to), broadcast(state[r].shrink))));
        }
    });
}

void values(const uint8_t* weights, int64_t rows, const uint8_t* values, KvType type, int64_t dim, const RowSoftmax* state, float* out,
            const uint8_t* next) {
    (type == KvType::int16 ? values_of<KvType::int16> : values_of<KvType::int8>)(weights, rows, values, dim, state, out, next);
}

constexpr CodeTileKernels kCodeTileKernels = {begin, end, scores, values, split_rows, split_lines};
