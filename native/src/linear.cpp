#include "lowbit/linear.h"

#include <algorithm>
#include <bit>

namespace lowbit {
namespace {

constexpr size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// How many rows a kernel for many rows takes at once, and from how many on unpacking the weights before use pays.
struct ManyRows {
    int64_t block, from;
};
constexpr ManyRows kInterleaved{kMaxKernelRows, 32}, kTiles{kTileBlockRows, kTileBlockRows};

// Rows of storage for m rows of activations: the last block may be padded (see QuantizedRows).
int64_t stored_rows(int64_t m) {
    const int64_t last = m % kMaxKernelRows;
    return last ? m - last + interleave_width(last) : m;
}

// Panels that pass through the cache together while all blocks of rows use them: 64 rows of weights, 140 KB for int4 and
// k = 4096, stay in L2 next to the activations.
constexpr int64_t kPanelGroup = 4;

// Rows that are multiplied with one panel group before the next: what they read (2 MB for k = 4096) stays near.
constexpr int64_t kSweepRows = 512;

// The panels of y that a member of the team computes.
Team::Range share(const Team& team, const PackedView& w) { return team.slice(w.layout.panels, kPanelGroup); }

// Runs the kernels over some panels: as many rows as there are full blocks of by `many` (null: none), what remains by `few`,
// kMaxKernelRows rows at a time.
template <class Few, class Many, class Rows>
void run(Few few, Many many, ManyRows rows, const PackedView& w, Team::Range mine, const Rows& x, float* y, int64_t y_stride) {
    int64_t done = 0;
    if (many && x.m >= rows.from) {
        alignas(kLine) uint8_t scratch[kManyScratch];
        const int64_t full = x.m / rows.block * rows.block;
        for (; done < full; done = std::min(full, done + kSweepRows))
            many(w, mine.begin, mine.end - mine.begin, x, done, std::min(kSweepRows, full - done), y + done * y_stride, y_stride,
                 scratch);
    }
    const int64_t step = x.m - done <= kMaxKernelRows ? mine.end - mine.begin : kPanelGroup;
    for (int64_t p = mine.begin; p < mine.end; p += step) {
        const int64_t panels = std::min(step, mine.end - p);
        for (int64_t row = done; row < x.m; row += kMaxKernelRows) {
            const int m = static_cast<int>(std::min<int64_t>(kMaxKernelRows, x.m - row));
            few(w, p, panels, x, row, m, y + row * y_stride, y_stride);
        }
    }
}

template <class T>
T* rounded(const LinearInput& x) { return static_cast<T*>(x.bf16.data) + x.bf16.first_row * x.bf16.stride; }

void run_panels(const KernelTable& kernels, const PackedView& w, Team::Range panels, const LinearInput& x, float* y, int64_t y_stride) {
    const int id = static_cast<int>(w.format->id);
    const LinearKernels& k = kernels.linear;
    const ManyRows many = k.tiles ? kTiles : kInterleaved;
    const Rounding rounding = Rounding::of(*w.format, x.compute);
    if (rounding.int8)
        run(k.int8[id], k.int8_many[id], many, w, panels, x.quantized, y, y_stride);
    else if (rounding.bf16 && has_bf16_kernels(k))
        run(k.bf16[id], k.bf16_many[id], many, w, panels, HalfRows{rounded<uint16_t>(x), x.bf16.stride, x.rows.m}, y, y_stride);
    else if (rounding.bf16)
        run(k.fp32[id], k.fp32_many[id], kInterleaved, w, panels, FloatRows{rounded<float>(x), x.bf16.stride, x.rows.m}, y, y_stride);
    else
        run(k.fp32[id], k.fp32_many[id], kInterleaved, w, panels, x.rows, y, y_stride);
}

void add_bias(Team& team, const PackedView& w, const float* bias, int64_t m, float* y, int64_t y_stride) {
    const Team::Range mine = share(team, w);
    const int64_t end = std::min(mine.end * kPanelRows, w.layout.rows);
    for (int64_t row = 0; row < m; row++)
        for (int64_t n = mine.begin * kPanelRows; n < end; n++) y[row * y_stride + n] += bias[n];
}

// Elements from one rounded row to the next: whole lines of the cache as halves, of an odd number, so that rows lie in different sets.
constexpr int64_t bf16_stride(int64_t k_padded) { return static_cast<int64_t>(round_up(k_padded, kActivationK)) + kLine / 2; }

void round_to_bf16(const KernelTable& kernels, const LinearInput& input, int64_t row, int64_t begin, int64_t end, const float* values) {
    const int64_t count = end - begin, padded = (end == input.k ? input.bf16.k_padded : end) - begin;
    if (has_bf16_kernels(kernels.linear)) {
        uint16_t* to = rounded<uint16_t>(input) + row * input.bf16.stride + begin;
        kernels.vector.to_bf16(values, to, count);
        std::fill(to + count, to + padded, uint16_t{0});
        return;
    }
    float* to = rounded<float>(input) + row * input.bf16.stride + begin;
    for (int64_t done = 0; done < count; done += kActivationK) {
        uint16_t halves[kActivationK];
        const int64_t some = std::min<int64_t>(kActivationK, count - done);
        kernels.vector.to_bf16(values + done, halves, some);
        for (int64_t i = 0; i < some; i++) to[done + i] = std::bit_cast<float>(static_cast<uint32_t>(halves[i]) << 16);
    }
    std::fill(to + count, to + padded, 0.0f);
}

}  // namespace

bool has_int8_compute(const Format& f) {
    return kernel_table(Tier::scalar).linear.int8[static_cast<int>(f.id)] != nullptr;
}

Rounding Rounding::of(const Format& f, Compute compute) {
    if (compute == Compute::fp32) return {};
    if (compute == Compute::int8 && has_int8_compute(f)) return {.int8 = true};
    return {.bf16 = f.id != FormatId::fp16 && f.id != FormatId::fp32};  // whose values bf16 would cut
}

size_t linear_input_bytes(int64_t m, int64_t k_padded, Rounding rounding) {
    const size_t codes = static_cast<size_t>(stored_rows(m)) * round_up(k_padded, kActivationK);
    const size_t quantized = round_up(codes, kLine) + round_up(codes / kActivationK * 4, kLine) + round_up(codes / kAtomK * 4, kLine);
    return (rounding.int8 ? quantized : 0) + (rounding.bf16 ? static_cast<size_t>(m * bf16_stride(k_padded)) * 4 : 0);
}

LinearInput linear_input(const float* x, int64_t x_stride, int64_t m, int64_t k, int64_t k_padded, Compute compute,
                         Rounding rounding, void* scratch) {
    LinearInput input;
    input.rows = {x, x_stride, m};
    input.k = k;
    input.compute = compute;
    auto* bytes = static_cast<uint8_t*>(scratch);
    if (rounding.bf16) {
        input.bf16 = {bytes, bf16_stride(k_padded), static_cast<int64_t>(round_up(k_padded, kActivationK))};
        bytes += m * input.bf16.stride * 4;
    }
    if (!rounding.int8) return input;
    input.quantized.k_padded = static_cast<int64_t>(round_up(k_padded, kActivationK));
    const size_t codes = static_cast<size_t>(stored_rows(m)) * input.quantized.k_padded;
    input.quantized.codes = reinterpret_cast<int8_t*>(bytes);
    bytes += round_up(codes, kLine);
    input.quantized.scales = reinterpret_cast<float*>(bytes);
    bytes += round_up(codes / kActivationK * 4, kLine);
    input.quantized.sums = reinterpret_cast<int32_t*>(bytes);
    input.quantized.m = m;
    return input;
}

RowPlace row_place(const LinearKernels& kernels, int64_t m, int64_t row) {
    const int64_t tiled = kernels.tiles ? m / kTileBlockRows * kTileBlockRows : 0;
    if (row < tiled) return {row / kTileBlockRows * kTileBlockRows, row % kTileBlockRows, kTileBlockRows, kActivationK};
    const int64_t block = row / kMaxKernelRows * kMaxKernelRows;
    return {block, row - block, interleave_width(m - block), 4};
}

void quantize_columns(const KernelTable& kernels, const LinearInput& input, int64_t row, int64_t begin, int64_t end,
                      const float* values) {
    if (!values) values = input.rows.data + row * input.rows.stride + begin;
    if (input.bf16.data) round_to_bf16(kernels, input, row, begin, end, values);
    const QuantizedRows& q = input.quantized;
    if (!q.codes) return;
    const int64_t padded_end = end == input.k ? q.k_padded : end;
    const RowPlace at = row_place(kernels.linear, q.m, row);
    const int64_t first = at.block * q.k_padded + begin * at.width;
    kernels.linear.quantize_row(values, end - begin, padded_end - begin, at.width, q.codes + first + at.lane * at.together,
                                q.scales + first / kActivationK + at.lane, q.sums + first / kAtomK + at.lane);
}

void prepare_input(Team& team, const KernelTable& kernels, LinearInput& input) {
    // Whole rows when there are enough of them; few rows (a step) are cut along k instead.
    const int64_t m = input.rows.m;
    const bool by_rows = m >= 4 * team.size();
    const Team::Range rows = by_rows ? team.slice(m) : Team::Range{0, m};
    const Team::Range columns = by_rows ? Team::Range{0, input.k} : team.slice(input.k, kActivationK);
    if (columns.begin == columns.end) return;
    for (int64_t row = rows.begin; row < rows.end; row++) quantize_columns(kernels, input, row, columns.begin, columns.end);
}

void linear(Team& team, const KernelTable& kernels, const PackedView& w, const float* bias, const LinearInput& x, float* y,
            int64_t y_stride) {
    run_panels(kernels, w, share(team, w), x, y, y_stride);
    if (bias) add_bias(team, w, bias, x.rows.m, y, y_stride);
}

void linear_columns(const KernelTable& kernels, const PackedView& w, int64_t first, int64_t columns, const LinearInput& x, float* y,
                    int64_t y_stride) {
    const Team::Range panels = {first / kPanelRows, (first + columns + kPanelRows - 1) / kPanelRows};
    run_panels(kernels, w, panels, x, y - first, y_stride);
}

}  // namespace lowbit
