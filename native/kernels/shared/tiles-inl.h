// Products in tiles; include/lowbit/tiles.h defines the arithmetic. Included inside the anonymous namespaces of the amx tier and
// of its model, behind their tile_ops-inl.h, tables.h and the lanes and loops of AVX-512.
// A pair of panels is quantised anew for 256 k at a time (8 KB, in L1), then multiplied with 32 rows after another in 2 x 2 tiles;
// sums in fp32 stay in a block of their own until all of k is done.

constexpr int kPair = 2, kStepRows = 2 * kTileRows16, kTileBytes = 1024, kBlockTiles = kTileBlockK / kTileK;
constexpr int64_t kSweepRows = 512, kSweepBytes = 1 << 20;  // rows of activations that go through all panels: half of L2

template <FormatId id>
constexpr int kLargest = kFormat<id>.has_min ? (1 << kFormat<id>.bits) - 1
                         : kFormat<id>.codes == Codes::kGrid ? kFormat<id>.offset
                         : id == FormatId::fp4 ? 12 : 127;

constexpr int log2_at_least(int numerator, int denominator) {  // least a with 2^a >= numerator / denominator
    int a = 0;
    while ((denominator << a) < numerator) a++;
    return a;
}
template <FormatId id>
constexpr int kShift = log2_at_least(kFormat<id>.has_min ? 252 : 127, kLargest<id>);

template <FormatId id>
inline Quad to_signed(Quad codes) {
    if constexpr (kFormat<id>.codes == Codes::kCodebook) {
        static constexpr auto table = byte_table<id, 64>(0);
        return _mm512_permutexvar_epi8(codes, _mm512_load_si512(table.at));
    } else {
        return _mm512_sub_epi8(codes, _mm512_set1_epi8(static_cast<char>(kFormat<id>.offset)));
    }
}

inline Floats magnitude(Floats v) { return _mm512_abs_ps(v); }
inline Quad both_halves(Ints v) {  // of every lane, the low 16 bits
    return _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(v, 16));
}

// Where the scales of the groups of one panel are; groups go through the panel in order.
struct Groups {
    const uint8_t* panel;
    int64_t tile_bytes, codes_bytes;  // of a layout tile, of its atoms
    int per_tile;

    const uint8_t* scales(int64_t group) const {
        return panel + group / per_tile * tile_bytes + codes_bytes + group % per_tile * (kLine / 2);
    }
};

// int8 weights [tile][16 lines][64] of one panel for the atoms [first, first + atoms), and their scales [16].
template <FormatId id>
void requantize(const Layout& l, const uint8_t* panel, int64_t first, int64_t atoms, uint8_t* to, float* scale) {
    constexpr int bits = kFormat<id>.bits, a = kShift<id>;
    constexpr bool has_min = kFormat<id>.has_min;
    const int64_t group_atoms = l.atoms_per_group(), tile_atoms = group_atoms * l.groups_per_tile;
    const Groups groups{panel, l.tile_bytes, tile_atoms * l.atom_bytes, l.groups_per_tile};
    const int64_t first_group = first / group_atoms, last_group = (first + atoms - 1) / group_atoms;
    const Floats largest = _mm512_set1_ps(static_cast<float>(kLargest<id>));

    Floats top = zero();
    for (int64_t g = first_group; g <= last_group; g++) {
        const Floats s = load_halves(groups.scales(g));
        if constexpr (has_min) {
            const Floats m = load_halves(groups.scales(g) + kLine);
            top = _mm512_max_ps(top, _mm512_max_ps(magnitude(m), magnitude(add(_mm512_mul_ps(s, largest), m))));
        } else {
            top = _mm512_max_ps(top, magnitude(s));
        }
    }
    constexpr float range = has_min ? 126.0f : 127.0f / static_cast<float>(kLargest<id>);
    constexpr float unit = 32768.0f / static_cast<float>(1 << a);
    const __mmask16 usable = _mm512_cmp_ps_mask(top, zero(), _CMP_GT_OQ);
    const Floats per_r = _mm512_maskz_div_ps(usable, _mm512_set1_ps(unit * range), top);
    [[maybe_unused]] const Floats per_c = _mm512_maskz_div_ps(usable, _mm512_set1_ps(126.0f), top);
    constexpr float scale_of_top = has_min ? 1.0f / 126.0f : static_cast<float>(kLargest<id>) / 127.0f;
    store(scale, has_min ? _mm512_div_ps(top, _mm512_set1_ps(126.0f)) : _mm512_mul_ps(top, _mm512_set1_ps(scale_of_top)));

    Quad r{}, c{};
    int64_t left = 0;  // atoms of the current group
    int64_t group = first_group;
    const uint8_t* tile = panel + first / tile_atoms * l.tile_bytes;
    int64_t in_tile = first % tile_atoms;
    for (int64_t i = 0; i < atoms; i++, left--) {
        if (left == 0) {
            const Ints rs = _mm512_cvttps_epi32(_mm512_mul_ps(load_halves(groups.scales(group)), per_r));
            r = both_halves(_mm512_max_epi32(_mm512_min_epi32(rs, _mm512_set1_epi32(32767)), _mm512_set1_epi32(-32767)));
            if constexpr (has_min)
                c = both_halves(_mm512_cvtps_epi32(_mm512_mul_ps(load_halves(groups.scales(group) + kLine), per_c)));
            left = i == 0 ? group_atoms - first % group_atoms : group_atoms;
            group++;
        }
        const uint8_t* atom = tile + in_tile * l.atom_bytes;
        for_each_index<kQuads>([&](auto j) INLINE_LAMBDA {
            constexpr int quad = decltype(j)::value;
            const Quad q = to_signed<id>(code_quad<bits, quad>(atom, atom + kHighPlane<bits>, 0));
            const Quad odd_bytes = _mm512_and_si512(q, _mm512_set1_epi16(static_cast<short>(0xff00)));
            Quad even = _mm512_mulhrs_epi16(_mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8 - a), r);
            Quad odd = _mm512_mulhrs_epi16(_mm512_srai_epi16(odd_bytes, 8 - a), r);
            if constexpr (has_min) {
                even = _mm512_add_epi16(even, c);
                odd = _mm512_add_epi16(odd, c);
            }
            store_quad(to + quad * kLine, _mm512_mask_mov_epi8(even, 0xaaaaaaaaaaaaaaaa, _mm512_slli_epi16(odd, 8)));
        });
        to += kQuads * kLine;
        if (++in_tile == tile_atoms) {
            tile += l.tile_bytes;
            in_tile = 0;
        }
    }
    if (atoms % 2) __builtin_memset(to, 0, kQuads * kLine);  // k_padded may end in half a tile
}

// Integer sums of `tiles` tiles of k for two or one tiles of rows, x and x + next_rows, times the pair of panels at w.
template <bool two_rows>
inline void multiply_pair(const int8_t* x, int64_t next_rows, const uint8_t* w, int64_t tiles, int32_t* sums) {
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (two_rows) tile_zero<2>(), tile_zero<3>();
    for (int64_t t = 0; t < tiles; t++, x += kTileBytes, w += kTileBytes) {
        tile_load<6>(w, kLine);
        tile_load<4>(x, kLine);
        tile_multiply<0, 4, 6>();
        tile_load<7>(w + kBlockTiles * kTileBytes, kLine);
        tile_multiply<1, 4, 7>();
        if constexpr (two_rows) {
            tile_load<5>(x + next_rows, kLine);
            tile_multiply<2, 5, 6>();
            tile_multiply<3, 5, 7>();
        }
    }
    tile_store<0>(sums, 2 * kLine);
    tile_store<1>(sums + kPanelRows, 2 * kLine);
    if constexpr (two_rows) {
        tile_store<2>(sums + kTileRows16 * 2 * kPanelRows, 2 * kLine);
        tile_store<3>(sums + (kTileRows16 * 2 + 1) * kPanelRows, 2 * kLine);
    }
}

// The pair's sums of one sweep of rows, and what it is computed from.
struct PairScratch {
    alignas(kLine) uint8_t weights[kPair][kBlockTiles * kTileBytes];
    alignas(kLine) float scales[kPair][kPanelRows];
    alignas(kLine) int32_t sums[kStepRows][kPair * kPanelRows];
    alignas(kLine) float y[kSweepRows][kPair * kPanelRows];
};

template <FormatId id>
void product_tiles(const PackedView& w, int64_t first_panel, int64_t panels, const TiledRows& x, float* y, int64_t y_stride) {
    const Layout& l = w.layout;
    const int64_t atoms = l.k_padded / kAtomK, row_bytes = x.tiles_k * kTileK, block_atoms = kTileBlockK / kAtomK;
    const int64_t fit = kSweepBytes / (row_bytes > 0 ? row_bytes : 1) / kStepRows * kStepRows;
    const int64_t sweep = fit < kStepRows ? kStepRows : fit > kSweepRows ? kSweepRows : fit;
    const float multiplier = w.multiplier * kInteger<id>.factor;
    const int64_t block_bytes = (block_atoms * l.atom_bytes + kLine - 1) / kLine * kLine;
    PairScratch s;
    TileConfig config{};
    config.palette = 1;
    for (int t = 0; t < 8; t++) config.colsb[t] = kLine, config.rows[t] = kTileRows16;
    tile_configure(&config);
    for (int64_t row0 = 0; row0 < x.m; row0 += sweep) {
        const int64_t rows = x.m - row0 < sweep ? x.m - row0 : sweep;
        for (int64_t pair = first_panel; pair < first_panel + panels; pair += kPair) {
            const int count = first_panel + panels - pair < kPair ? 1 : kPair;
            const uint8_t* source = w.panel(pair);
            for (int64_t block = 0; block < x.blocks; block++) {
                const int64_t first = block * block_atoms, mine = atoms - first < block_atoms ? atoms - first : block_atoms;
                for (int p = 0; p < kPair; p++)  // a pair of one panel takes it twice
                    requantize<id>(l, w.panel(pair + (p < count ? p : 0)), first, mine, s.weights[p], s.scales[p]);
                const int64_t tiles = (mine + 1) / 2;
                int64_t ahead = (block + 1) * block_bytes;  // of the next block, fetched while this one is multiplied
                for (int64_t r = 0; r < rows; r += kStepRows) {
                    for (int64_t i = 0; i < block_bytes * kStepRows / rows + kLine && ahead < l.panel_bytes; i += kLine, ahead += kLine)
                        for (int p = 0; p < count; p++) prefetch(source + p * l.panel_bytes + ahead);
                    const int8_t* from = x.codes + (row0 + r) * row_bytes + first / 2 * kTileBytes;
                    if (rows - r > kTileRows16) multiply_pair<true>(from, kTileRows16 * row_bytes, s.weights[0], tiles, s.sums[0]);
                    else multiply_pair<false>(from, 0, s.weights[0], tiles, s.sums[0]);
                    const float* t = x.scales + block * x.padded_rows + row0 + r;
                    const int64_t here = rows - r < kStepRows ? rows - r : kStepRows;
                    for (int64_t i = 0; i < here; i++)
                        for (int p = 0; p < kPair; p++) {
                            float* to = s.y[r + i] + p * kPanelRows;
                            const Floats sum = to_floats(load_quad(reinterpret_cast<const uint8_t*>(s.sums[i] + p * kPanelRows)));
                            const Floats scaled = multiply(_mm512_mul_ps(sum, load(s.scales[p])), t + i);
                            store(to, block == 0 ? scaled : add(load(to), scaled));
                        }
                }
            }
            for (int64_t r = 0; r < rows; r++)
                for (int p = 0; p < count; p++)
                    store(y + (row0 + r) * y_stride + (pair + p) * kPanelRows, multiply(load(s.y[r] + p * kPanelRows), &multiplier));
        }
    }
    tile_release();
}

void quantize_tiled(const float* x, int64_t k, const TiledRows& t, int64_t row) {
    int8_t* codes = t.codes + row / kTileRows16 * kTileRows16 * t.tiles_k * kTileK + row % kTileRows16 * kTileK;
    const int64_t padded = t.tiles_k * kTileK;
    for (int64_t block = 0; block < t.blocks; block++) {
        const int64_t begin = block * kTileBlockK, end = padded - begin < kTileBlockK ? padded : begin + kTileBlockK;
        const auto values = [&](int64_t at) INLINE_LAMBDA {
            const int64_t left = x ? k - at : 0;
            const __mmask16 valid = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
            return _mm512_maskz_loadu_ps(valid, x ? x + at : nullptr);
        };
        // Magnitudes are compared as bit patterns, so a NaN is larger than anything and reaches the scale.
        Ints largest = _mm512_setzero_si512();
        for (int64_t at = begin; at < end; at += 16)
            largest = _mm512_max_epu32(largest, _mm512_castps_si512(magnitude(values(at))));
        const uint32_t bits = _mm512_reduce_max_epu32(largest);
        float top;
        __builtin_memcpy(&top, &bits, 4);
        const float inverse = 127.0f / top;
        const bool usable = top > 0 && top <= 3.4028234663852886e38f && inverse <= 3.4028234663852886e38f;
        t.scales[block * t.padded_rows + row] = top / 127.0f;
        for (int64_t at = begin; at < end; at += 16) {
            Floats v = multiply(values(at), &inverse);
            v = _mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f));
            const __m128i q = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(usable ? 0xffff : 0, v));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + at / kTileK * kTileBytes + at % kTileK), q);
        }
    }
}

template <FormatId id>
void add_tiles_format(TileKernels& k) {
    if constexpr (kHasInt8<id>) k.int8[static_cast<int>(id)] = product_tiles<id>;
}

TileKernels all_tiles() {
    TileKernels k{};
    k.quantize = quantize_tiled;
#define X(name, ...) add_tiles_format<FormatId::name>(k);
    LOWBIT_FORMATS(X)
#undef X
    return k;
}
