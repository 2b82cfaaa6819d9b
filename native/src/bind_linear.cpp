// Linear products on plain arrays, for tests, benchmarks and callers outside the decoder.
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>

#include <nanobind/stl/optional.h>

#include "bind.h"
#include "lowbit/code_tiles.h"
#include "lowbit/linear.h"

using namespace lowbit;
using FloatRow = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

namespace {

struct Free {
    void operator()(void* p) const { std::free(p); }
};

// 64-byte aligned and zeroed.
template <class T>
std::unique_ptr<T[], Free> aligned(size_t count) {
    const size_t bytes = (count * sizeof(T) + kLine) / kLine * kLine;
    void* p = std::aligned_alloc(kLine, bytes);
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, bytes);
    return std::unique_ptr<T[], Free>(static_cast<T*>(p));
}

// A numpy array [rows, cols] that owns `data`.
template <class T>
nb::ndarray<nb::numpy, T> owned(T* data, std::initializer_list<size_t> shape) {
    nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
    return nb::ndarray<nb::numpy, T>(data, shape, owner);
}

nb::ndarray<nb::numpy, float> bound_linear(ThreadPool& pool, int tier, int compute, int format, int64_t rows, int64_t k,
                                           int group_size, float multiplier, const Bytes& bytes, const Floats& x,
                                           std::optional<FloatRow> bias) {
    const PackedView w = packed_view(format, rows, k, group_size, multiplier, bytes);
    const KernelTable& kernels = kernels_of(tier);
    const Compute type = compute_of(compute);
    const int64_t m = static_cast<int64_t>(x.shape(0)), padded = w.layout.k_padded;
    if (static_cast<int64_t>(x.shape(1)) != k)
        throw std::invalid_argument("x has " + std::to_string(x.shape(1)) + " columns, the weight has k = " + std::to_string(k));
    if (bias && static_cast<int64_t>(bias->shape(0)) != rows)
        throw std::invalid_argument("bias has " + std::to_string(bias->shape(0)) + " elements, the weight has " +
                                    std::to_string(rows) + " rows");
    const int64_t columns = w.layout.panels * kPanelRows;
    auto result = aligned<float>(static_cast<size_t>(m * rows));
    const float* bias_data = bias ? bias->data() : nullptr;
    {
        nb::gil_scoped_release release;
        auto input_rows = aligned<float>(static_cast<size_t>(m * padded));
        const Rounding rounding = Rounding::of(*w.format, type);
        auto scratch = aligned<uint8_t>(linear_input_bytes(m, padded, rounding));
        auto y = aligned<float>(static_cast<size_t>(m * columns));
        for (int64_t i = 0; i < m; i++) std::memcpy(&input_rows[i * padded], x.data() + i * k, k * sizeof(float));
        LinearInput input = linear_input(input_rows.get(), padded, m, k, padded, type, rounding, scratch.get());
        pool.run([&](Team& team) {
            prepare_input(team, kernels, input);
            team.barrier();
            linear(team, kernels, w, bias_data, input, y.get(), columns);
        });
        for (int64_t i = 0; i < m; i++) std::memcpy(&result[i * rows], &y[i * columns], rows * sizeof(float));
    }
    return owned(result.release(), {static_cast<size_t>(m), static_cast<size_t>(rows)});
}

// The product on the caller's own memory: x [m, k_padded] zero past k, scratch for the quantised rows, y [m, 16 * panels].
// Tests put all of it next to unmapped pages.
void bound_linear_into(ThreadPool& pool, int tier, int compute, int format, int64_t rows, int64_t k, int group_size,
                       float multiplier, const Bytes& bytes, const Floats& x, MutableBytes scratch, MutableFloats y) {
    const PackedView w = packed_view(format, rows, k, group_size, multiplier, bytes);
    const KernelTable& kernels = kernels_of(tier);
    const Compute type = compute_of(compute);
    const int64_t m = static_cast<int64_t>(x.shape(0)), padded = w.layout.k_padded;
    if (static_cast<int64_t>(x.shape(1)) != padded) throw std::invalid_argument("x must have k_padded columns");
    const Rounding rounding = Rounding::of(*w.format, type);
    if (scratch.shape(0) != linear_input_bytes(m, padded, rounding)) throw std::invalid_argument("scratch has the wrong size");
    if (static_cast<int64_t>(y.shape(0)) != m || static_cast<int64_t>(y.shape(1)) != w.layout.panels * kPanelRows)
        throw std::invalid_argument("y must be [m, 16 * panels]");
    nb::gil_scoped_release release;
    LinearInput input = linear_input(x.data(), padded, m, k, padded, type, rounding, scratch.data());
    pool.run([&](Team& team) {
        prepare_input(team, kernels, input);
        team.barrier();
        linear(team, kernels, w, nullptr, input, y.data(), y.shape(1));
    });
}

nb::tuple bound_quantize_rows(ThreadPool& pool, int tier, const Floats& x, int64_t k_padded) {
    const int64_t m = static_cast<int64_t>(x.shape(0)), k = static_cast<int64_t>(x.shape(1));
    if (k_padded < k || k_padded % kActivationK) throw std::invalid_argument("k_padded must be a multiple of 64, at least k");
    const KernelTable& kernels = kernels_of(tier);
    const int64_t groups = k_padded / kActivationK, atoms = k_padded / kAtomK;
    auto codes = aligned<int8_t>(static_cast<size_t>(m * k_padded));
    auto scales = aligned<float>(static_cast<size_t>(m * groups));
    auto sums = aligned<int32_t>(static_cast<size_t>(m * atoms));
    {
        nb::gil_scoped_release release;
        const Rounding int8{.int8 = true};
        auto scratch = aligned<uint8_t>(linear_input_bytes(m, k_padded, int8));
        LinearInput input = linear_input(x.data(), k, m, k, k_padded, Compute::int8, int8, scratch.get());
        pool.run([&](Team& team) { prepare_input(team, kernels, input); });
        const QuantizedRows& q = input.quantized;
        for (int64_t row = 0; row < m; row++) {
            const RowPlace at = row_place(kernels.linear, m, row);
            for (int64_t i = 0; i < k_padded / at.together; i++)
                std::memcpy(&codes[row * k_padded + i * at.together],
                            q.codes + at.block * k_padded + at.together * (i * at.width + at.lane), at.together);
            for (int64_t g = 0; g < groups; g++)
                scales[row * groups + g] = q.scales[at.block * groups + g * at.width + at.lane];
            for (int64_t a = 0; a < atoms; a++) sums[row * atoms + a] = q.sums[at.block * atoms + a * at.width + at.lane];
        }
    }
    const size_t rows = static_cast<size_t>(m);
    return nb::make_tuple(owned(codes.release(), {rows, static_cast<size_t>(k_padded)}),
                          owned(scales.release(), {rows, static_cast<size_t>(groups)}),
                          owned(sums.release(), {rows, static_cast<size_t>(atoms)}));
}

// The avx2 tier as a CPU without AVX-VNNI runs it, so that tests reach it on the others.
KernelTable avx2_without_vnni() {
    KernelTable table = kernel_table(Tier::avx2);
    overlay(table.linear, avx2::linear_kernels_without_vnni());
    return table;
}

// The amx tier with its tile instructions in C++.
KernelTable amx_model_table() {
    KernelTable table = kernel_table(Tier::avx512);
    overlay(table.linear, amx_model::linear_kernels());
    overlay(table.linear, amx_model::bf16_kernels());
    table.code_tiles = amx_model::code_tile_kernels();
    return table;
}

}  // namespace

Compute compute_of(int compute) {
    if (compute < 0 || compute > 2) throw std::invalid_argument("compute must be 0 (int8), 1 (fp32) or 2 (bf16)");
    return static_cast<Compute>(compute);
}

const KernelTable& kernels_of(int tier) {
    const Tier needed = tier == kAvx2WithoutVnni ? Tier::avx2 : tier == kAmxModel ? Tier::avx512 : static_cast<Tier>(tier);
    if (tier < 0 || tier > kAmxModel || !tier_available(needed))
        throw std::invalid_argument("tier " + std::to_string(tier) + " is not available on this machine");
    if (tier == kAmxModel) {
        static const KernelTable model = amx_model_table();
        return model;
    }
    if (tier != kAvx2WithoutVnni) return kernel_table(needed);
    static const KernelTable table = avx2_without_vnni();
    return table;
}

void bind_linear(nb::module_& m) {
    m.def("linear", &bound_linear, nb::arg("pool"), nb::arg("tier"), nb::arg("compute"), nb::arg("format"), nb::arg("rows"),
          nb::arg("k"), nb::arg("group_size"), nb::arg("multiplier"), nb::arg("data"), nb::arg("x"),
          nb::arg("bias").none() = nb::none(), "x W^T (+ bias) as fp32 [m, rows]; compute 0 = int8, 1 = fp32, 2 = bf16.");
    m.def(
        "linear_input_bytes",
        [](int64_t m, int64_t k_padded, int format, int compute) {
            const Format* f = find_format(format);
            if (!f) throw std::invalid_argument("unknown format id " + std::to_string(format));
            return linear_input_bytes(m, k_padded, Rounding::of(*f, compute_of(compute)));
        },
        nb::arg("m"), nb::arg("k_padded"), nb::arg("format"), nb::arg("compute"));
    m.def("linear_into", &bound_linear_into, nb::arg("pool"), nb::arg("tier"), nb::arg("compute"), nb::arg("format"),
          nb::arg("rows"), nb::arg("k"), nb::arg("group_size"), nb::arg("multiplier"), nb::arg("data"), nb::arg("x"),
          nb::arg("scratch"), nb::arg("y"), "linear() on the caller's memory, nothing copied.");
    m.def("quantize_rows", &bound_quantize_rows, nb::arg("pool"), nb::arg("tier"), nb::arg("x"), nb::arg("k_padded"),
          "Activations as int8 codes [m, k_padded], scales [m, k_padded / 64], code sums [m, k_padded / 32].");
    m.def("has_bf16_kernels", [](int tier) { return has_bf16_kernels(kernels_of(tier).linear); }, nb::arg("tier"),
          "Do activations that are rounded to bf16 meet kernels of their own, and not those of fp32?");
    m.def(
        "effective_compute",
        [](int format, int compute) {
            const Format* f = find_format(format);
            if (!f) throw std::invalid_argument("unknown format id " + std::to_string(format));
            const Rounding rounding = Rounding::of(*f, compute_of(compute));
            return static_cast<int>(rounding.int8 ? Compute::int8 : rounding.bf16 ? Compute::bf16 : Compute::fp32);
        },
        nb::arg("format"), nb::arg("compute"), "The compute type that products of a format have where one is asked for.");
    m.def("has_int8_compute", [](int format) {
        const Format* f = find_format(format);
        return f && has_int8_compute(*f);
    });
}
