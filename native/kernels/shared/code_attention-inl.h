// Attention over codes (code_attention.h) for the vector tiers, included inside a tier's anonymous namespace behind its floats and
// exponential-inl.h. Besides them the including file provides
//   Pairs, kLanes pairs of codes or as many int32; zero_pairs; load_pairs<type>(codes, i) of the pairs from i on;
//   broadcast_pair(codes); dot(sum, a, b), which adds both products of each pair; to_floats(sums);
//   store_codes(p, v) rounds kLanes floats of at most +-32767 to codes, to the nearest even;
//   inside(v, outside, i, range): v, with `outside` in the lanes l for which i + l is outside of the range;
//   magnitude(v); widen_codes(codes, wide), kWidenCodes of them; highest_of_four and sums_of_four vectors, as
//   __m128, which from_four and to_four turn into Floats and back;
//   kLanesLog2; power_at(table, v): the integer at the place of v's lowest kLanesLog2 bits, added to v's bits << (23 - kLanesLog2).

constexpr int kCodeRows = 4;
constexpr int kBlockVectors = kKvBlock / kLanes;

// ---- codes of a vector ----------------------------------------------------------------------------------------------

float to_codes(const float* x, int64_t n, float most, int16_t* codes) {
    const Floats zero = broadcast(0.0f);
    Floats top = zero, poison = zero;  // 0 times what is not finite is NaN, which `higher` may pass over
    const auto each = [&](auto f) INLINE_LAMBDA {
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) f(i, load(x + i));
        if (i < n) f(i, load(x + i, static_cast<int>(n - i)));
    };
    each([&](int64_t, Floats v) INLINE_LAMBDA {
        top = higher(magnitude(v), top);
        poison = fma(v, zero, poison);
    });
    const float largest = highest(top), wrong = sum(poison);
    float scale = 0, inverse = 0;
    if (wrong == 0 && largest >= 0x1p-126f) {
        const Floats unit = broadcast(1.0f / largest);
        Floats squares = zero;
        each([&](int64_t, Floats v) INLINE_LAMBDA {
            const Floats part = mul(v, unit);
            squares = fma(part, part, squares);
        });
        const float by_norm = kCodeNorm / __builtin_sqrtf(sum(squares)), range = by_norm < most ? by_norm : most;
        scale = largest / range;
        inverse = range / largest;
        if (!__builtin_isfinite(inverse)) scale = inverse = 0;
    }
    const Floats factor = broadcast(inverse);
    int64_t i = 0;
    if (inverse == 0) {  // not by multiplication: what is not finite would stay so
        for (; i < n; i++) codes[i] = 0;
        return wrong == 0 ? scale : __builtin_nanf("");
    }
    for (; i + kLanes <= n; i += kLanes) store_codes(codes + i, mul(load(x + i), factor));
    if (i < n) {
        int16_t rest[kLanes];
        store_codes(rest, mul(load(x + i, static_cast<int>(n - i)), factor));
        for (int lane = 0; i < n; i++, lane++) codes[i] = rest[lane];
    }
    return scale;
}

void widen(const int8_t* codes, int64_t n, int16_t* wide) {
    int64_t i = 0;
    for (; i + kWidenCodes <= n; i += kWidenCodes) widen_codes(codes + i, wide + i);
    for (; i < n; i++) wide[i] = codes[i];
}

// ---- products -------------------------------------------------------------------------------------------------------

#include "shared/fetch-inl.h"

// sums[r][v] += the pairs factors[r * stride], factors[r * stride + 2], ... times vector v of each line of pairs.
template <KvType type, int R, int N>
ALWAYS_INLINE void pair_products(const int16_t* factors, int64_t stride, const void* lines, int64_t line_pairs, int64_t count,
                                 int64_t column, Fetch fetch, Pairs (&sums)[R][N]) {
    for (int64_t i = 0; i < count; i++) {
        fetch.step();
        Pairs line[N];
        UNROLL for (int v = 0; v < N; v++) {
            line[v] = load_pairs<type>(lines, i * line_pairs + column + v * kLanes);
            asm("" : "+v"(line[v]));  // else gcc 12 loads it again for every row
        }
        UNROLL for (int r = 0; r < R; r++) {
            const Pairs factor = broadcast_pair(factors + r * stride + 2 * i);
            UNROLL for (int v = 0; v < N; v++) sums[r][v] = dot(sums[r][v], factor, line[v]);
        }
    }
}

template <KvType type, int R>
void code_scores_of_rows(const int16_t* q, const float* q_scales, const void* keys, const float* scales, int64_t count, int64_t dim,
                         float* scores, Fetch fetch) {
    for (int64_t t = 0; t < count; t += kKeyVectors * kLanes) {
        Pairs sums[R][kKeyVectors];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < kKeyVectors; v++) sums[r][v] = zero_pairs();
        pair_products<type>(q, dim, keys, kKvBlock, dim / 2, t, fetch, sums);
        fetch.lines = 0;
        UNROLL for (int v = 0; v < kKeyVectors; v++) {
            const Floats scale = load(scales + t + v * kLanes);
            UNROLL for (int r = 0; r < R; r++)
                store(scores + r * kKvBlock + t + v * kLanes, mul(mul(to_floats(sums[r][v]), scale), broadcast(q_scales[r])));
        }
    }
}

template <KvType type, int R, int N>
ALWAYS_INLINE void code_values_of_columns(const int16_t* weights, const void* values, int64_t count, int64_t dim, int64_t d,
                                          const RowSoftmax* state, float* out, Fetch fetch) {
    Pairs sums[R][N];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) sums[r][v] = zero_pairs();
    pair_products<type>(weights, kKvBlock, values, dim, (count + 1) / 2, d, fetch, sums);
    UNROLL for (int r = 0; r < R; r++) {
        const Floats shrink = broadcast(state[r].shrink), factor = broadcast(state[r].factor);
        UNROLL for (int v = 0; v < N; v++) {
            float* to = out + r * dim + d + v * kLanes;
            store(to, fma(to_floats(sums[r][v]), factor, mul(load(to), shrink)));
        }
    }
}

template <KvType type, int R>
void code_values_of_rows(const int16_t* weights, const void* values, int64_t count, int64_t dim, const RowSoftmax* state, float* out,
                         Fetch fetch) {
    int64_t d = 0;
    for (; d + kKeyVectors * kLanes <= dim; d += kKeyVectors * kLanes, fetch.lines = 0)
        code_values_of_columns<type, R, kKeyVectors>(weights, values, count, dim, d, state, out, fetch);
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes, fetch.lines = 0)
        code_values_of_columns<type, R, 2>(weights, values, count, dim, d, state, out, fetch);
    for (; d < dim; d += kLanes, fetch.lines = 0) code_values_of_columns<type, R, 1>(weights, values, count, dim, d, state, out, fetch);
}

#define FOR_ROWS(kernel, type) {kernel<type, 1>, kernel<type, 2>, kernel<type, 3>, kernel<type, 4>}
#define FOR_TYPES(kernel) {FOR_ROWS(kernel, KvType::int8), FOR_ROWS(kernel, KvType::int16)}
using CodeScores = void (*)(const int16_t*, const float*, const void*, const float*, int64_t, int64_t, float*, Fetch);
using CodeValues = void (*)(const int16_t*, const void*, int64_t, int64_t, const RowSoftmax*, float*, Fetch);
constexpr CodeScores kCodeScores[2][kCodeRows] = FOR_TYPES(code_scores_of_rows);
constexpr CodeValues kCodeValues[2][kCodeRows] = FOR_TYPES(code_values_of_rows);
#undef FOR_TYPES
#undef FOR_ROWS

void scores(const int16_t* q, const float* q_scales, int64_t rows, const void* keys, KvType type, const float* scales, int64_t count,
            int64_t dim, float* scores, const uint8_t* next) {
    if (next) Fetch::scales(next + dim * kKvBlock * kv_type_size(type));
    for (int64_t r = 0; r < rows; r += kCodeRows) {
        const int64_t left = rows - r < kCodeRows ? rows - r : kCodeRows;
        const Fetch fetch(next, dim / 2, 2 * kKvBlock * kv_type_size(type), (rows + kCodeRows - 1) / kCodeRows, r / kCodeRows);
        kCodeScores[type == KvType::int16][left - 1](q + r * dim, q_scales + r, keys, scales, count, dim, scores + r * kKvBlock, fetch);
    }
}

void values(const int16_t* weights, int64_t rows, const void* values, KvType type, int64_t count, int64_t dim,
            const RowSoftmax* state, float* out, const uint8_t* next) {
    if (next) Fetch::scales(next + dim * kKvBlock * kv_type_size(type));
    for (int64_t r = 0; r < rows; r += kCodeRows) {
        const int64_t left = rows - r < kCodeRows ? rows - r : kCodeRows;
        const Fetch fetch(next, kKvBlock / 2, 2 * dim * kv_type_size(type), (rows + kCodeRows - 1) / kCodeRows, r / kCodeRows);
        kCodeValues[type == KvType::int16][left - 1](weights + r * kKvBlock, values, count, dim, state + r, out + r * dim, fetch);
    }
}

// ---- softmax --------------------------------------------------------------------------------------------------------

// 2^(j / kLanes) with j taken off where the sum of whole and fraction, shifted into the exponent, puts it.
struct alignas(64) PowerTable {
    uint32_t at[kLanes];
};
constexpr PowerTable power_table() {
    constexpr float powers[16] = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
                                  1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f, 1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
    PowerTable table{};
    for (int j = 0; j < kLanes; j++)
        table.at[j] = __builtin_bit_cast(uint32_t, powers[j * 16 / kLanes]) - (static_cast<uint32_t>(j) << (23 - kLanesLog2));
    return table;
}
constexpr PowerTable kPowerTable = power_table();

// e^x for x <= 0, relative error 4e-6 (16 lanes: 5e-7): 2^(n / kLanes) from the table, and for the rest, at most 2^(1 / kLanes / 2)
// from 1, a parabola. Weights are rounded to codes afterwards, and 10 instructions do, where `exponential` takes 17. Results stay at
// 2^-64 and above: nothing beside the 1 of the largest, and products with it are not subnormal, which CPUs are slow at.
ALWAYS_INLINE Floats power_of_e(Floats x) {
    constexpr float kLn2 = 0.693147181f, kReach = kLn2 / (2 * kLanes);
    const Floats shift = broadcast(1.5f * (1 << (23 - kLanesLog2)));  // behind it a float has just the bits of n
    x = higher(broadcast(-64.0f), mul(x, broadcast(1.44269504f)));
    const Floats n = add(x, shift), rest = sub(x, sub(n, shift));
    const Floats slope = fma(rest, broadcast(kLn2 * kLn2 / 2), broadcast(kLn2 * (1 + kReach * kReach / 8)));
    return mul(fma(slope, rest, broadcast(1.0f)), power_at(kPowerTable.at, n));
}

constexpr int kSoftRows = 8;  // what a row's reductions wait for is hidden by the other rows

// Goes on with `rows` rows, at least 1, which see all keys (whole) or one with any range. Reductions are of four rows at once; those of
// rows that are not there are not read.
template <bool whole>
ALWAYS_INLINE void soften_rows(const float* scores, int rows, const KeyRange* ranges, const float* scales, RowSoftmax* state,
                               int16_t* weights) {
    const Floats zero = broadcast(0.0f);
    const auto within = [&](Floats v, Floats outside, int i) INLINE_LAMBDA {
        return whole ? v : inside(v, outside, i * kLanes, ranges[0]);
    };
    const auto four = [&](auto of, int r) INLINE_LAMBDA {
        const auto at = [&](int i) INLINE_LAMBDA { return of(r + i < rows ? r + i : r); };
        return _mm_setr_ps(at(0), at(1), at(2), at(3));
    };
    Floats sums[kSoftRows], weighted[kSoftRows];
    alignas(64) float products[kSoftRows][kKvBlock];
    // Of a row, four beside each other. They are written and read in the same pieces: a vector would wait for the scalars it is made of.
    alignas(16) float top[kSoftRows], sum[kSoftRows], shrink[kSoftRows], factor[kSoftRows], inverse[kSoftRows];
    for (int r = 0; r < rows; r++) {
        const float* row = scores + r * kKvBlock;
        const Floats floor = broadcast(state[r].sum == 0 ? row[ranges[r].from] : state[r].largest);
        Floats even = floor, odd = floor;
        UNROLL for (int i = 0; i < kBlockVectors; i += 2) {
            even = higher(within(load(row + i * kLanes), floor, i), even);
            odd = higher(within(load(row + (i + 1) * kLanes), floor, i + 1), odd);
        }
        sums[r] = higher(even, odd);
    }
    for (int r = rows; r % 4; r++) sums[r] = weighted[r] = zero;
    for (int r = 0; r < rows; r += 4) {
        const __m128 largest = highest_of_four(sums + r), before = four([&](int i) INLINE_LAMBDA { return state[i].largest; }, r),
                     empty = _mm_cmpeq_ps(four([&](int i) INLINE_LAMBDA { return state[i].sum; }, r), _mm_setzero_ps());
        _mm_store_ps(top + r, largest);
        _mm_store_ps(shrink + r, _mm_andnot_ps(empty, to_four(power_of_e(from_four(_mm_sub_ps(before, largest))))));
    }
    for (int r = 0; r < rows; r++) {
        const float* row = scores + r * kKvBlock;
        const Floats largest = broadcast(top[r]);
        Floats s = zero, w = zero;
        UNROLL for (int i = 0; i < kBlockVectors; i++) {
            const Floats e = power_of_e(sub(load(row + i * kLanes), largest));
            const Floats product = within(mul(e, load(scales + i * kLanes)), zero, i);
            s = add(s, within(e, zero, i));
            w = add(w, product);
            store(products[r] + i * kLanes, product);
        }
        sums[r] = s;
        weighted[r] = w;
    }
    for (int r = 0; r < rows; r += 4) {
        const __m128 total = sums_of_four(weighted + r), small = _mm_cmplt_ps(total, _mm_set1_ps(1e-30f));
        _mm_store_ps(sum + r, sums_of_four(sums + r));
        _mm_store_ps(factor + r, _mm_andnot_ps(small, _mm_mul_ps(total, _mm_set1_ps(1.0f / kWeightSum))));
        _mm_store_ps(inverse + r, _mm_andnot_ps(small, _mm_div_ps(_mm_set1_ps(kWeightSum), total)));
    }
    for (int r = 0; r < rows; r++) {
        state[r] = {top[r], state[r].sum * shrink[r] + sum[r], shrink[r], factor[r]};
        const Floats by = broadcast(inverse[r]);
        UNROLL for (int i = 0; i < kBlockVectors; i++)
            store_codes(weights + r * kKvBlock + i * kLanes, mul(load(products[r] + i * kLanes), by));
    }
}

void soften_any(const float* scores, const KeyRange& range, const float* scales, RowSoftmax& state, int16_t* weights) {
    if (range.from < range.to) return soften_rows<false>(scores, 1, &range, scales, &state, weights);
    state.shrink = 1;
    state.factor = 0;
    UNROLL for (int i = 0; i < kBlockVectors; i++) store_codes(weights + i * kLanes, broadcast(0.0f));
}

void softmax(const float* scores, int64_t rows, const KeyRange* ranges, const float* scales, RowSoftmax* state, int16_t* weights) {
    for (int64_t r = 0; r < rows;) {
        int n = 0;
        while (n < kSoftRows && r + n < rows && ranges[r + n].from == 0 && ranges[r + n].to == kKvBlock) n++;
        if (n)
            soften_rows<true>(scores + r * kKvBlock, n, ranges + r, scales, state + r, weights + r * kKvBlock);
        else
            soften_any(scores + r * kKvBlock, ranges[r], scales, state[r], weights + r * kKvBlock);
        r += n ? n : 1;
    }
}

constexpr CodeAttentionKernels kCodeAttentionKernels = {to_codes, widen, scores, softmax, values};
