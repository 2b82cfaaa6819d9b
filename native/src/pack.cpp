#include "lowbit/pack.h"

#include <cmath>
#include <vector>

#include "lowbit/codebooks.h"
#include "lowbit/half.h"
#include "code_values.h"
#include "planes.h"

namespace lowbit {
namespace {

constexpr int kLanes = 16;  // partial results of a reduction: enough for any vector width, and a fixed order

// ---- reading float rows ----

const uint8_t* row_bytes(const FloatView& w, int64_t row) {
    return static_cast<const uint8_t*>(w.data) + row * w.stride * dtype_size(w.dtype);
}

void read_row(const FloatView& w, int64_t row, float* out) {
    const uint8_t* in = row_bytes(w, row);
    if (w.dtype == DType::fp32) {
        std::memcpy(out, in, w.cols * sizeof(float));
        return;
    }
    // Byte by byte as far as the language is concerned: the tensors of a file's mapping need not be aligned.
    const auto each = [&](auto to_float) {
        for (int64_t i = 0; i < w.cols; i++) {
            uint16_t half;
            std::memcpy(&half, in + 2 * i, 2);
            out[i] = to_float(half);
        }
    };
    if (w.dtype == DType::bf16)
        each(bf16_to_float);
    else
        each(half_to_float);
}

// ---- scales ----

// What a format's codes look like to the quantiser; the same for every group.
struct Grid {
    const Format& format;
    float multiplier;
    float divisor;       // scale = extreme / multiplier / divisor
    bool signed_extreme; // the extreme keeps its sign, so the grid's extra negative code lands on it
    float low, high;     // code - offset is clamped to these (grids)
    uint8_t zero_code;   // decodes to 0
};

// Largest value of the codes, which the largest weight of a group is brought to.
float top_value(const Format& f) {
    switch (f.id) {
        case FormatId::fp4: return kFp4Values.max();
        case FormatId::fp6: return kFp6Values.max();
        case FormatId::fp8_e4m3: return kFp8E4m3Values.max();
        case FormatId::fp8_e5m2: return kFp8E5m2Values.max();
        default: break;
    }
    if (f.codes == Codes::kCodebook) return 1.0f;  // NormalFloat
    if (f.has_min) return static_cast<float>((1 << f.bits) - 1);
    return f.id == FormatId::sym_int8 ? 127.0f : static_cast<float>(f.offset);
}

uint8_t zero_code(const Format& f) {
    if (f.id == FormatId::nf4) return 7;
    if (f.id == FormatId::nf3) return 3;
    return static_cast<uint8_t>(f.offset);
}

Grid make_grid(const Format& f, float multiplier, bool full_range) {
    const bool symmetric = f.codes == Codes::kGrid && !f.has_min;
    const bool extra_code = symmetric && full_range && f.id != FormatId::sym_int8;
    const float top = static_cast<float>(f.has_min ? (1 << f.bits) - 1 : f.offset - 1);
    return {f, multiplier, extra_code ? -top_value(f) : symmetric ? top : top_value(f), extra_code,
            f.has_min ? 0.0f : extra_code ? -top - 1 : -top, top, zero_code(f)};
}

struct Scale {
    uint16_t scale_half, min_half;
    float scale, min;  // as decoding sees them: the stored halves times the multiplier
};

// A half of x with one zero only.
uint16_t stored_half(float x) {
    const uint16_t h = float_to_half(x);
    return h & 0x7FFFu ? h : 0;
}

void extremes(const float* x, int64_t n, float& low, float& high) {
    float lows[kLanes], highs[kLanes];
    for (int l = 0; l < kLanes; l++) lows[l] = highs[l] = x[0];
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int l = 0; l < kLanes; l++) {
            lows[l] = x[i + l] < lows[l] ? x[i + l] : lows[l];
            highs[l] = x[i + l] > highs[l] ? x[i + l] : highs[l];
        }
    for (; i < n; i++) {
        lows[0] = x[i] < lows[0] ? x[i] : lows[0];
        highs[0] = x[i] > highs[0] ? x[i] : highs[0];
    }
    for (int l = 1; l < kLanes; l++) {
        lows[0] = lows[l] < lows[0] ? lows[l] : lows[0];
        highs[0] = highs[l] > highs[0] ? highs[l] : highs[0];
    }
    low = lows[0];
    high = highs[0];
}

struct Span {
    float low = 0, high = 0;  // of a group, divided by the multiplier: a power of two, so exact
};

Span span_of(const Grid& g, const float* x, int64_t n) {
    Span s;
    if (n <= 0) return s;
    extremes(x, n, s.low, s.high);
    s.low /= g.multiplier;  // nothing below over- or underflows
    s.high /= g.multiplier;
    return s;
}

Scale choose_scale(const Grid& g, const Span& of, float ratio) {
    Scale s{};
    const float low = of.low * ratio, high = of.high * ratio;
    float span;
    if (g.format.has_min) {
        span = high - low;
        s.min_half = stored_half(low);
        s.min = half_to_float(s.min_half) * g.multiplier;
    } else if (g.signed_extreme) {
        span = -low > high ? low : high;
    } else {
        span = -low > high ? -low : high;
    }
    s.scale_half = stored_half(span / g.divisor);
    s.scale = half_to_float(s.scale_half) * g.multiplier;
    return s;
}

// ---- codes: x is a whole group, n a multiple of 32 ----

// Nearest integer, ties to even, of |x| < 2^22: the addition rounds, the low bits of the sum are the result.
inline int32_t nearest(float x) { return static_cast<int32_t>(float_bits(x + 12582912.0f) - 0x4B400000u); }

void encode_grid(const Grid& g, const Scale& s, const float* x, int64_t n, uint8_t* codes) {
    const float low = g.low, high = g.high, scale = s.scale, min = s.min;
    const int32_t offset = g.format.offset;
    for (int64_t i = 0; i < n; i++) {
        float q = (x[i] - min) / scale;
        q = q < low ? low : q;
        q = q > high ? high : q;
        codes[i] = static_cast<uint8_t>(nearest(q) + offset);
    }
}

// Sorted codebook: the code is the number of midpoints below x (a tie goes to the lower value).
template <int N>
void encode_sorted(const Codebook<N>& book, const Scale& s, const float* x, int64_t n, uint8_t* codes) {
    float middle[N - 1];
    for (int c = 0; c + 1 < N; c++) middle[c] = (book.value[c] + book.value[c + 1]) * 0.5f;
    const float scale = s.scale;
    for (int64_t i = 0; i < n; i++) {
        const float q = x[i] / scale;
        int32_t code = 0;
#pragma GCC unroll 16
        for (int c = 0; c + 1 < N; c++) code += q > middle[c] ? 1 : 0;
        codes[i] = static_cast<uint8_t>(code);
    }
}

// Rounds to the small float by its bits, ties to even mantissa, saturating; zero has no sign.
template <int E, int M, int Bias, int MaxCode>
void encode_minifloat(const Scale& s, const float* x, int64_t n, uint8_t* codes) {
    constexpr float first_normal = 1.0f / (1 << (Bias - 1));
    constexpr float subnormal_steps = static_cast<float>(1 << (Bias - 1 + M));
    for (int64_t i = 0; i < n; i++) {
        const uint32_t u = float_bits(x[i] / s.scale), a = u & 0x7FFFFFFFu;
        const int32_t normal = static_cast<int32_t>((a + (1u << (22 - M)) - 1 + (a >> (23 - M) & 1u)) >> (23 - M)) -
                               ((127 - Bias) << M);
        const float clipped = bits_float(a) < first_normal ? bits_float(a) : first_normal;
        const int32_t subnormal = nearest(clipped * subnormal_steps);
        int32_t code = bits_float(a) < first_normal ? subnormal : normal;
        code = code > MaxCode ? MaxCode : code;
        const int32_t sign = static_cast<int32_t>(u >> 31 << (E + M));
        codes[i] = static_cast<uint8_t>(code | (code != 0 ? sign : 0));
    }
}

void encode(const Grid& g, const Scale& s, const float* x, int64_t n, uint8_t* codes) {
    if (s.scale == 0.0f) {
        std::memset(codes, g.zero_code, n);
        return;
    }
    switch (g.format.id) {
        case FormatId::nf3: return encode_sorted(kNf3Values, s, x, n, codes);
        case FormatId::nf4: return encode_sorted(kNf4Values, s, x, n, codes);
        case FormatId::fp4: return encode_minifloat<2, 1, 1, 7>(s, x, n, codes);
        case FormatId::fp6: return encode_minifloat<3, 2, 3, 31>(s, x, n, codes);
        case FormatId::fp8_e4m3: return encode_minifloat<4, 3, 7, 0x7E>(s, x, n, codes);
        case FormatId::fp8_e5m2: return encode_minifloat<5, 2, 15, 0x7B>(s, x, n, codes);
        default: return encode_grid(g, s, x, n, codes);
    }
}

// ---- the clip of a group ----

double squared_error(const Grid& g, const CodeValues& values, const Scale& s, const float* x, int64_t n,
                     const uint8_t* codes, const float* importance) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float value = values.value[codes[i]] * s.scale;
        if (g.format.has_min) value += s.min;
        const double d = x[i] - value;
        sum += (importance ? importance[i] : 1.0) * (d * d);
    }
    return sum;
}

// The scale and codes of a group of `size` weights, of which n are the matrix's own; `trial` is room for codes.
Scale encode_group(const Grid& g, const CodeValues& values, const ClipSearch& search, const float* x, int64_t n,
                   int64_t size, const float* importance, uint8_t* trial, uint8_t* codes) {
    const Span span = span_of(g, x, n);
    if (search.count == 0) {
        const Scale s = choose_scale(g, span, 1.0f);
        encode(g, s, x, size, codes);
        return s;
    }
    Scale best{};
    double least = 0;
    for (int i = 0; i < search.count; i++) {
        const Scale s = choose_scale(g, span, search.ratios[i]);
        encode(g, s, x, size, trial);
        const double error = squared_error(g, values, s, x, n, trial, importance);
        if (i > 0 && !(error < least)) continue;
        least = error;
        best = s;
        std::memcpy(codes, trial, size);
    }
    return best;
}

// ---- panels ----

// Work space of one thread: one row as floats, one panel as codes and halves.
struct Scratch {
    std::vector<float> row;
    std::vector<uint8_t> codes;            // [16][k_padded]
    std::vector<uint16_t> scales, minima;  // [groups][16]
    std::vector<uint8_t> trial;            // codes of a group
};

// The codes and halves of a panel as tiles.
void write_panel(const Format& f, const Layout& l, const Scratch& t, uint8_t* out) {
    const int64_t halves = static_cast<int64_t>(l.groups_per_tile) * kPanelRows;
    for (int64_t tile = 0; tile < l.tiles; tile++) {
        for (int64_t k = tile * l.tile_k(); k < (tile + 1) * l.tile_k(); k += kAtomK, out += l.atom_bytes)
            planes::pack_atom(f.bits, t.codes.data() + k, l.k_padded, out);
        for (const auto* line : {&t.scales, &t.minima}) {
            if (line == &t.minima && !f.has_min) continue;
            std::memset(out, 0, kLine);
            std::memcpy(out, line->data() + tile * halves, halves * sizeof(uint16_t));
            out += kLine;
        }
    }
}

// Rows of given codes into the scratch panel. Returns the bits that any of them has set.
uint8_t gather_panel(const CodesView& w, const Format& f, const Layout& l, int64_t panel, Scratch& t) {
    const uint8_t zero = zero_code(f);
    uint8_t seen = 0;
    for (int r = 0; r < kPanelRows; r++) {
        const int64_t row = panel * kPanelRows + r;
        uint8_t* codes = t.codes.data() + r * l.k_padded;
        const int64_t valid = row < w.rows ? w.cols : 0;
        if (valid) std::memcpy(codes, w.codes + row * w.stride, valid);
        for (int64_t k = 0; k < valid; k++) seen |= codes[k];
        std::memset(codes + valid, zero, l.k_padded - valid);
        const int64_t given = row < w.rows ? w.groups : 0;
        for (int64_t i = 0; i < l.k_padded / l.group_size; i++) {
            t.scales[i * kPanelRows + r] = i < given ? w.scales[row * w.groups + i] : 0;
            t.minima[i * kPanelRows + r] = i < given && w.minima ? w.minima[row * w.groups + i] : 0;
        }
    }
    return seen;
}

void quantize_panel(const FloatView& w, const Grid& g, const CodeValues& values, const ClipSearch& search,
                    const Layout& l, int64_t panel, Scratch& t, uint8_t* out) {
    const int64_t groups = l.k_padded / l.group_size;
    for (int r = 0; r < kPanelRows; r++) {
        const int64_t row = panel * kPanelRows + r;
        uint8_t* codes = t.codes.data() + r * l.k_padded;
        if (row >= w.rows) {
            std::memset(codes, g.zero_code, l.k_padded);
            for (int64_t i = 0; i < groups; i++) t.scales[i * kPanelRows + r] = t.minima[i * kPanelRows + r] = 0;
            continue;
        }
        read_row(w, row, t.row.data());
        for (int64_t i = 0; i < groups; i++) {
            const int64_t begin = i * l.group_size;
            const int64_t valid = w.cols - begin < l.group_size ? w.cols - begin : l.group_size;
            const float* importance = search.importance ? search.importance + begin : nullptr;
            const Scale s = encode_group(g, values, search, t.row.data() + begin, valid, l.group_size, importance,
                                         t.trial.data(), codes + begin);
            t.scales[i * kPanelRows + r] = s.scale_half;
            t.minima[i * kPanelRows + r] = s.min_half;
        }
    }
    write_panel(g.format, l, t, out);
}

// Float formats: 16 rows x 32 k at a time, no scales.
void copy_panel(const FloatView& w, const Format& f, const Layout& l, int64_t panel, Scratch& t, uint8_t* out) {
    std::memset(out, 0, l.panel_bytes);
    for (int r = 0; r < kPanelRows && panel * kPanelRows + r < w.rows; r++) {
        read_row(w, panel * kPanelRows + r, t.row.data());
        const float* x = t.row.data();
        if (f.id == FormatId::fp32) {
            for (int64_t k = 0; k < w.cols; k++) std::memcpy(out + k * kLine + 4 * r, x + k, 4);
        } else if (f.id == FormatId::bf16) {
            for (int64_t k = 0; k < w.cols; k++) {
                const uint16_t h = float_to_bf16(x[k]);
                std::memcpy(out + k / 2 * kLine + 4 * r + 2 * (k % 2), &h, 2);
            }
        } else {
            for (int64_t k = 0; k < w.cols; k++) {
                const uint16_t h = float_to_half(x[k]);
                std::memcpy(out + k * kLine / 2 + 2 * r, &h, 2);
            }
        }
    }
}

template <class Bits>
Bits largest_magnitude(const FloatView& w, int64_t row, Bits most) {
    constexpr Bits mask = static_cast<Bits>(~Bits{0}) >> 1;
    const auto* x = row_bytes(w, row);  // of a file's mapping: not aligned
    for (int64_t i = 0; i < w.cols; i++) {
        Bits a;
        std::memcpy(&a, x + i * sizeof(Bits), sizeof(Bits));
        a &= mask;
        most = a > most ? a : most;
    }
    return most;
}

}  // namespace

float abs_max(ThreadPool& pool, const FloatView& w) {
    // The bit patterns of magnitudes sort as finite < infinity < NaN, so an integer maximum is the answer.
    std::vector<uint32_t> most(pool.size());
    pool.run([&](Team& team) {
        const Team::Range rows = team.slice(w.rows);
        uint32_t wide = 0;
        uint16_t narrow = 0;
        for (int64_t row = rows.begin; row < rows.end; row++) {
            if (w.dtype == DType::fp32)
                wide = largest_magnitude<uint32_t>(w, row, wide);
            else
                narrow = largest_magnitude<uint16_t>(w, row, narrow);
        }
        if (w.dtype == DType::bf16) wide = float_bits(bf16_to_float(narrow));
        if (w.dtype == DType::fp16) wide = float_bits(half_to_float(narrow));
        most[team.id()] = wide;
    });
    uint32_t all = 0;
    for (uint32_t m : most) all = m > all ? m : all;
    return bits_float(all);
}

float scale_multiplier(const Format& f, float abs_max) {
    if (f.codes == Codes::kFloat || abs_max == 0.0f) return 1.0f;
    const float largest_scale = abs_max / (f.has_min ? top_value(f) * 0.5f : top_value(f));
    int exponent;
    if (std::frexp(largest_scale, &exponent) == 0.5f) exponent--;  // largest_scale <= 2^exponent
    return std::ldexp(1.0f, largest_scale == 0.0f || exponent < -126 ? -126 : exponent);
}

void quantize(ThreadPool& pool, const FloatView& w, const Format& f, int group_size, float multiplier, bool full_range,
              uint8_t* out, const ClipSearch& search) {
    const Layout l = layout_of(f, w.rows, w.cols, group_size);
    if (l.bytes == 0) return;  // no rows or no columns; per row, the latter have no group to divide by
    const bool scaled = f.codes != Codes::kFloat;
    const size_t halves = scaled ? l.k_padded / l.group_size * kPanelRows : 0;
    std::vector<Scratch> scratch(pool.size());
    for (Scratch& t : scratch) {
        t.row.assign(l.k_padded, 0.0f);  // stays zero from w.cols on
        t.codes.resize(scaled ? l.k_padded * kPanelRows : 0);
        t.scales.resize(halves);
        t.minima.resize(halves);
        t.trial.resize(search.count && scaled ? l.group_size : 0);
    }
    const Grid g = make_grid(f, multiplier, full_range);
    const CodeValues values(f);
    pool.run([&](Team& team) {
        const Team::Range panels = team.slice(l.panels);
        Scratch& t = scratch[team.id()];
        for (int64_t p = panels.begin; p < panels.end; p++) {
            if (scaled)
                quantize_panel(w, g, values, search, l, p, t, out + p * l.panel_bytes);
            else
                copy_panel(w, f, l, p, t, out + p * l.panel_bytes);
        }
    });
}

bool pack_codes(ThreadPool& pool, const CodesView& w, const Format& f, int group_size, uint8_t* out) {
    const Layout l = layout_of(f, w.rows, w.cols, group_size);
    if (l.bytes == 0) return true;
    const size_t halves = l.k_padded / l.group_size * kPanelRows;
    std::vector<Scratch> scratch(pool.size());
    for (Scratch& t : scratch) {
        t.codes.resize(l.k_padded * kPanelRows);
        t.scales.resize(halves);
        t.minima.resize(halves);
    }
    std::vector<uint8_t> seen(pool.size());
    pool.run([&](Team& team) {
        const Team::Range panels = team.slice(l.panels);
        Scratch& t = scratch[team.id()];
        uint8_t bits = 0;
        for (int64_t p = panels.begin; p < panels.end; p++) {
            bits |= gather_panel(w, f, l, p, t);
            write_panel(f, l, t, out + p * l.panel_bytes);
        }
        seen[team.id()] = bits;
    });
    uint8_t all = 0;
    for (uint8_t bits : seen) all |= bits;
    return f.bits == 8 || all >> f.bits == 0;
}

}  // namespace lowbit
