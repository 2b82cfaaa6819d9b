// The kernels of attention over codes of a tier, called directly: what the tests compare tier by tier. Arrays are passed through as
// they are, so that operands may end at a guard page. Those in tiles are given codes too: what stands between is made here.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "bind.h"
#include "lowbit/code_tiles.h"

using namespace lowbit;

namespace {

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const CodeAttentionKernels& kernels(int tier) {
    if (tier < 0 || tier > 3 || !tier_available(static_cast<Tier>(tier)))
        throw std::invalid_argument("tier " + std::to_string(tier) + " does not run on this CPU");
    return code_attention_kernels(static_cast<Tier>(tier));
}

void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

int64_t size(const auto& array) { return static_cast<int64_t>(array.size()); }

// Codes of either width, as bytes.
KvType type_of(const Array<const uint8_t>& codes, int64_t n) {
    expect(size(codes) == n || size(codes) == 2 * n, "codes: sizes differ");
    return size(codes) == n ? KvType::int8 : KvType::int16;
}

void expect_scores(const Array<const int16_t>& q, int64_t rows, const Array<const float>& scales, int64_t count, int64_t dim,
                   const Array<float>& out) {
    expect(dim > 0 && dim % 2 == 0 && rows > 0 && count > 0 && count <= kKvBlock && size(scales) == kKvBlock, "code_scores: bad sizes");
    expect(size(q) == rows * dim && size(out) == rows * kKvBlock, "code_scores: sizes differ");
}

void expect_values(const Array<const int16_t>& weights, int64_t rows, int64_t count, int64_t dim, const Array<const float>& state,
                   const Array<float>& out) {
    expect(dim > 0 && dim % kPanelRows == 0 && count > 0 && count <= kKvBlock, "code_values: bad sizes");
    expect(rows > 0 && size(weights) == rows * kKvBlock && size(state) == 4 * rows && size(out) == rows * dim,
           "code_values: sizes differ");
}

void scores(int tier, const Array<const int16_t>& q, const Array<const float>& q_scales, const Array<const uint8_t>& keys,
            const Array<const float>& scales, int64_t count, int64_t dim, Array<float> out) {
    const int64_t rows = size(q_scales);
    expect_scores(q, rows, scales, count, dim, out);
    kernels(tier).scores(q.data(), q_scales.data(), rows, keys.data(), type_of(keys, kKvBlock * dim), scales.data(), count, dim,
                         out.data(), keys.data());
}

// Ranges and state row by row: from, to; largest, sum, shrink, factor.
void softmax(int tier, const Array<const float>& scores, const Array<const int32_t>& ranges, const Array<const float>& scales,
             Array<float> state, Array<int16_t> weights) {
    const int64_t rows = size(ranges) / 2;
    expect(rows > 0 && size(ranges) == 2 * rows && size(scales) == kKvBlock && size(state) == 4 * rows &&
               size(scores) == rows * kKvBlock && size(weights) == rows * kKvBlock,
           "code_softmax: sizes differ");
    kernels(tier).softmax(scores.data(), rows, reinterpret_cast<const KeyRange*>(ranges.data()), scales.data(),
                          reinterpret_cast<RowSoftmax*>(state.data()), weights.data());
}

void values(int tier, const Array<const int16_t>& weights, const Array<const uint8_t>& values, int64_t count, int64_t dim,
            const Array<const float>& state, Array<float> out) {
    const int64_t rows = size(weights) / kKvBlock;
    expect_values(weights, rows, count, dim, state, out);
    kernels(tier).values(weights.data(), rows, values.data(), type_of(values, kKvBlock * dim), count, dim,
                         reinterpret_cast<const RowSoftmax*>(state.data()), out.data(), values.data());
}

const CodeTileKernels& tiles(int tier) {
    const CodeTileKernels* kernels = kernels_of(tier).code_tiles;
    if (!kernels) throw std::invalid_argument("tier " + std::to_string(tier) + " has no tiles");
    return *kernels;
}

// 64-byte aligned.
class Planes {
public:
    explicit Planes(int64_t bytes) : lines_(static_cast<size_t>((bytes + kLine - 1) / kLine)) {}
    uint8_t* data() { return lines_.data()->bytes; }

private:
    struct alignas(kLine) Line { uint8_t bytes[kLine]; };
    std::vector<Line> lines_;
};

void tile_scores(int tier, const Array<const int16_t>& q, const Array<const float>& q_scales, const Array<const uint8_t>& keys,
                 const Array<const float>& scales, int64_t count, int64_t dim, Array<float> out) {
    const CodeTileKernels& k = tiles(tier);
    const int64_t rows = size(q_scales);
    expect_scores(q, rows, scales, count, dim, out);
    const KvType type = type_of(keys, kKvBlock * dim);
    Planes q_bytes(split_rows_bytes(rows, dim)), key_bytes(split_lines_bytes(type, dim, kKvBlock));
    k.begin();
    k.split_rows(q.data(), rows, dim, q_bytes.data());
    k.split_lines(keys.data(), type, dim, kKvBlock, key_bytes.data());
    for (int64_t r = 0; r < rows; r += kTileBlockRows)
        k.scores(q_bytes.data() + split_rows_bytes(r, dim), q_scales.data() + r, std::min<int64_t>(kTileBlockRows, rows - r),
                 key_bytes.data(), type, scales.data(), count, dim, out.data() + r * kKvBlock, r ? nullptr : keys.data());
    k.end();
}

void tile_values(int tier, const Array<const int16_t>& weights, const Array<const uint8_t>& values, int64_t dim,
                 const Array<const float>& state, Array<float> out) {
    const CodeTileKernels& k = tiles(tier);
    const int64_t rows = size(weights) / kKvBlock;
    expect_values(weights, rows, kKvBlock, dim, state, out);
    const KvType type = type_of(values, kKvBlock * dim);
    Planes weight_bytes(split_rows_bytes(rows, kKvBlock)), value_bytes(split_lines_bytes(type, kKvBlock, dim));
    k.begin();
    k.split_rows(weights.data(), rows, kKvBlock, weight_bytes.data());
    k.split_lines(values.data(), type, kKvBlock, dim, value_bytes.data());
    for (int64_t r = 0; r < rows; r += kTileBlockRows)
        k.values(weight_bytes.data() + split_rows_bytes(r, kKvBlock), std::min<int64_t>(kTileBlockRows, rows - r), value_bytes.data(),
                 type, dim, reinterpret_cast<const RowSoftmax*>(state.data()) + r, out.data() + r * dim, r ? nullptr : values.data());
    k.end();
}

}  // namespace

void bind_code_attention(nb::module_& m) {
    m.def("code_vector", [](int tier, const Array<const float>& x, float most, Array<int16_t> codes) {
        expect(size(x) == size(codes) && size(x) > 0, "code_vector: sizes differ");
        return kernels(tier).to_codes(x.data(), size(x), most, codes.data());
    });
    m.def("code_widen", [](int tier, const Array<const int8_t>& codes, Array<int16_t> wide) {
        expect(size(codes) == size(wide), "code_widen: sizes differ");
        kernels(tier).widen(codes.data(), size(codes), wide.data());
    });
    m.def("code_scores", &scores, nb::arg("tier"), nb::arg("q"), nb::arg("q_scales"), nb::arg("keys"), nb::arg("scales"),
          nb::arg("count"), nb::arg("dim"), nb::arg("out"));
    m.def("code_softmax", &softmax, nb::arg("tier"), nb::arg("scores"), nb::arg("ranges"), nb::arg("scales"), nb::arg("state"),
          nb::arg("weights"));
    m.def("code_values", &values, nb::arg("tier"), nb::arg("weights"), nb::arg("values"), nb::arg("count"), nb::arg("dim"),
          nb::arg("state"), nb::arg("out"));
    m.def("tile_scores", &tile_scores, nb::arg("tier"), nb::arg("q"), nb::arg("q_scales"), nb::arg("keys"), nb::arg("scales"),
          nb::arg("count"), nb::arg("dim"), nb::arg("out"), "code_scores of a tier (or amx_model) in tiles.");
    m.def("tile_values", &tile_values, nb::arg("tier"), nb::arg("weights"), nb::arg("values"), nb::arg("dim"), nb::arg("state"),
          nb::arg("out"), "code_values of a tier (or amx_model) in tiles.");
}
