// The element-wise and attention kernels of a tier, called directly: what the tests compare tier by tier. Arrays are
// passed through as they are, so that operands may end at a guard page.
#include <stdexcept>

#include "bind.h"
#include "lowbit/kernels.h"

using namespace lowbit;

namespace {

using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableRow = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Raw = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const VectorKernels& kernels(int tier) {
    if (tier < 0 || tier > 3 || !tier_available(static_cast<Tier>(tier)))
        throw std::invalid_argument("tier " + std::to_string(tier) + " does not run on this CPU");
    return kernel_table(static_cast<Tier>(tier)).vector;
}

void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

int64_t size(const auto& array) { return static_cast<int64_t>(array.size()); }

Activation activation(int f) {
    expect(f >= 0 && f <= static_cast<int>(Activation::quick_gelu), "unknown activation");
    return static_cast<Activation>(f);
}

void norm(int tier, bool rms, const Row& x, const std::optional<Row>& weight, const std::optional<Row>& bias,
          float offset, float eps, MutableRow y) {
    const int64_t n = size(x);
    expect(n > 0 && size(y) == n && (!weight || size(*weight) == n) && (!bias || size(*bias) == n),
           "norm: sizes differ");
    expect(!rms || weight, "rms_norm needs a weight");
    const float* w = weight ? weight->data() : nullptr;
    if (rms)
        kernels(tier).rms_norm(x.data(), w, offset, eps, n, y.data());
    else
        kernels(tier).layer_norm(x.data(), w, bias ? bias->data() : nullptr, offset, eps, n, y.data());
}

void attention(int tier, bool values, const Row& a, int64_t rows, const Raw& block, int dtype, int64_t count,
               int64_t dim, MutableRow out) {
    expect(dtype >= 0 && dtype <= 2 && rows > 0 && dim > 0 && count > 0 && count <= kKvBlock, "attention: bad sizes");
    expect(!values || dim % kPanelRows == 0, "attention_values needs whole vectors");
    expect(size(a) == rows * (values ? kKvBlock : dim) && size(out) == rows * (values ? dim : kKvBlock) &&
               size(block) == kKvBlock * dim * dtype_size(static_cast<DType>(dtype)),
           "attention: sizes differ");
    const VectorKernels& k = kernels(tier);
    (values ? k.attention_values : k.attention_scores)(a.data(), rows, block.data(), static_cast<DType>(dtype), count,
                                                       dim, out.data());
}

}  // namespace

void bind_vector(nb::module_& m) {
    m.def("vector_norm", &norm, nb::arg("tier"), nb::arg("rms"), nb::arg("x"), nb::arg("weight").none(),
          nb::arg("bias").none(), nb::arg("offset"), nb::arg("eps"), nb::arg("y"));
    m.def("vector_add", [](int tier, MutableRow y, const Row& x, float scale) {
        expect(size(x) == size(y) && size(x) > 0, "add: sizes differ");
        kernels(tier).add(y.data(), x.data(), scale, size(x));
    });
    m.def("vector_max", [](int tier, const Row& x) {
        expect(size(x) > 0, "max of nothing");
        return kernels(tier).max(x.data(), size(x));
    });
    m.def("vector_exp_sum", [](int tier, MutableRow x, float shift) {
        expect(size(x) > 0, "sum of nothing");
        return kernels(tier).exp_sum(x.data(), shift, size(x));
    });
    m.def("vector_to_half", [](int tier, bool bf16, const Row& x, Halves y) {
        expect(size(x) == size(y) && size(x) > 0, "to_half: sizes differ");
        (bf16 ? kernels(tier).to_bf16 : kernels(tier).to_fp16)(x.data(), y.data(), size(x));
    });
    m.def("vector_activate", [](int tier, int f, const Row& x, MutableRow y) {
        expect(size(x) == size(y) && size(x) > 0, "activate: sizes differ");
        kernels(tier).activate(activation(f), x.data(), size(x), y.data());
    });
    m.def("vector_activate_gated", [](int tier, int f, const Row& gate_up, MutableRow y) {
        const int64_t n = size(y), panels = (n + kPanelRows - 1) / kPanelRows;
        expect(n > 0 && size(gate_up) == 2 * kPanelRows * panels, "activate_gated: sizes differ");
        kernels(tier).activate_gated(activation(f), gate_up.data(), n, y.data());
    });
    m.def("vector_attention", &attention, nb::arg("tier"), nb::arg("values"), nb::arg("a"), nb::arg("rows"),
          nb::arg("block"), nb::arg("dtype"), nb::arg("count"), nb::arg("dim"), nb::arg("out"));
}
