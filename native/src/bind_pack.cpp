// Packing as Python sees it. Shapes, dtypes and sizes are checked here; the library below trusts them.
#include <bit>

#include "bind.h"
#include "lowbit/codebooks.h"
#include "lowbit/pack.h"

using namespace lowbit;

namespace {

using Matrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using FloatVector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using CodeRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;
using MutableCodes = nb::ndarray<uint8_t, nb::ndim<2>, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const Format& format_by_id(int id) {
    const Format* f = find_format(id);
    if (!f) throw std::invalid_argument("unknown format id " + std::to_string(id));
    return *f;
}

void check_group_size(int group_size) {
    if (group_size < 0 || group_size % kAtomK)
        throw std::invalid_argument("group_size must be 0 (per row) or a multiple of 32, got " + std::to_string(group_size));
}

void check_multiplier(float multiplier) {
    if (!(multiplier > 0.0f) || (std::bit_cast<uint32_t>(multiplier) & 0x7FFFFFu))
        throw std::invalid_argument("the multiplier must be a positive power of two, got " + std::to_string(multiplier));
}

void check_bytes(int64_t have, int64_t want, const Format& f, int64_t rows, int64_t k) {
    if (have != want)
        throw std::invalid_argument("packed " + std::string(f.name) + " [" + std::to_string(rows) + ", " + std::to_string(k) +
                                    "] takes " + std::to_string(want) + " bytes, got " + std::to_string(have));
}

void check_aligned(const void* data, size_t size, const char* what) {
    if (size && reinterpret_cast<uintptr_t>(data) % kLine)
        throw std::invalid_argument(std::string(what) + " must start on a 64-byte boundary; allocate with lowbit.packed.empty");
}

// fp32, fp16, or uint16 holding bf16; a row stride is fine, elements of a row are contiguous.
FloatView float_view(const Matrix& a) {
    FloatView v;
    if (a.dtype() == nb::dtype<float>())
        v.dtype = DType::fp32;
    else if (a.dtype() == nb::dtype<uint16_t>())
        v.dtype = DType::bf16;
    else if (a.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && a.dtype().bits == 16)
        v.dtype = DType::fp16;
    else
        throw std::invalid_argument("a weight must be float32, float16, or uint16 holding bf16");
    v.data = a.data();
    v.rows = static_cast<int64_t>(a.shape(0));
    v.cols = static_cast<int64_t>(a.shape(1));
    v.stride = a.stride(0);
    if (v.cols > 1 && a.stride(1) != 1) throw std::invalid_argument("the rows of a weight must be contiguous");
    return v;
}

std::vector<float> codebook_values(int format) {
    const auto list = [](const auto& book) { return std::vector<float>(std::begin(book.value), std::end(book.value)); };
    switch (format_by_id(format).id) {
        case FormatId::nf3: return list(kNf3Values);
        case FormatId::nf4: return list(kNf4Values);
        case FormatId::fp4: return list(kFp4Values);
        case FormatId::fp6: return list(kFp6Values);
        case FormatId::fp8_e4m3: return list(kFp8E4m3Values);
        case FormatId::fp8_e5m2: return list(kFp8E5m2Values);
        default: return {};
    }
}

}  // namespace

PackedView packed_view(int format, int64_t rows, int64_t k, int group_size, float multiplier, const Bytes& data) {
    const Format& f = format_by_id(format);
    if (rows < 0 || k < 0) throw std::invalid_argument("a shape cannot be negative");
    check_group_size(group_size);
    check_multiplier(multiplier);
    PackedView v;
    v.format = find_format(format);
    v.layout = layout_of(f, rows, k, group_size);
    v.multiplier = multiplier;
    v.data = data.data();
    check_bytes(static_cast<int64_t>(data.size()), v.layout.bytes, f, rows, k);
    check_aligned(v.data, data.size(), "packed data");
    return v;
}

void bind_pack(nb::module_& m) {
    m.def("codebook", &codebook_values, nb::arg("format"));
    m.def(
        "abs_max",
        [](ThreadPool& pool, const Matrix& w) {
            const FloatView v = float_view(w);
            nb::gil_scoped_release release;
            return abs_max(pool, v);
        },
        nb::arg("pool"), nb::arg("matrix"));
    m.def(
        "scale_multiplier", [](int format, float abs_max) { return scale_multiplier(format_by_id(format), abs_max); },
        nb::arg("format"), nb::arg("abs_max"));
    m.def(
        "quantize",
        [](ThreadPool& pool, const Matrix& w, int format, int group_size, float multiplier, bool full_range,
           const MutableBytes& out, const std::optional<FloatVector>& ratios, const std::optional<FloatVector>& importance) {
            const Format& f = format_by_id(format);
            const FloatView v = float_view(w);
            check_group_size(group_size);
            check_multiplier(multiplier);
            check_bytes(static_cast<int64_t>(out.size()), layout_of(f, v.rows, v.cols, group_size).bytes, f, v.rows, v.cols);
            check_aligned(out.data(), out.size(), "the output");
            ClipSearch search;
            if (ratios) {
                search.ratios = ratios->data();
                search.count = static_cast<int>(ratios->size());
            }
            if (importance) {
                if (static_cast<int64_t>(importance->size()) != v.cols)
                    throw std::invalid_argument("importance has " + std::to_string(importance->size()) +
                                                " values, the weight has " + std::to_string(v.cols) + " columns");
                search.importance = importance->data();
            }
            uint8_t* bytes = out.data();
            nb::gil_scoped_release release;
            quantize(pool, v, f, group_size, multiplier, full_range, bytes, search);
        },
        nb::arg("pool"), nb::arg("matrix"), nb::arg("format"), nb::arg("group_size"), nb::arg("multiplier"),
        nb::arg("full_range"), nb::arg("out"), nb::arg("ratios") = nb::none(), nb::arg("importance") = nb::none());
    m.def(
        "pack_codes",
        [](ThreadPool& pool, const CodeRows& codes, const Halves& scales, const std::optional<Halves>& minima, int format,
           int group_size, const MutableBytes& out) {
            const Format& f = format_by_id(format);
            check_group_size(group_size);
            if (f.codes == lowbit::Codes::kFloat)
                throw std::invalid_argument(std::string(f.name) + " has no codes to be given");
            CodesView v;
            v.rows = static_cast<int64_t>(codes.shape(0));
            v.cols = static_cast<int64_t>(codes.shape(1));
            v.stride = codes.stride(0);
            if (v.cols > 1 && codes.stride(1) != 1) throw std::invalid_argument("the rows of codes must be contiguous");
            const Layout l = layout_of(f, v.rows, v.cols, group_size);
            v.groups = l.group_size ? (v.cols + l.group_size - 1) / l.group_size : 0;
            for (const Halves* halves : {&scales, minima ? &*minima : &scales})
                if (static_cast<int64_t>(halves->shape(0)) != v.rows || static_cast<int64_t>(halves->shape(1)) != v.groups)
                    throw std::invalid_argument("scales and minima must be [" + std::to_string(v.rows) + ", " +
                                                std::to_string(v.groups) + "]");
            check_bytes(static_cast<int64_t>(out.size()), l.bytes, f, v.rows, v.cols);
            check_aligned(out.data(), out.size(), "the output");
            v.codes = codes.data();
            v.scales = scales.data();
            v.minima = minima ? minima->data() : nullptr;
            uint8_t* bytes = out.data();
            bool fits;
            {
                nb::gil_scoped_release release;
                fits = pack_codes(pool, v, f, group_size, bytes);
            }
            if (!fits)
                throw std::invalid_argument("a code has more than the " + std::to_string(f.bits) + " bits of " +
                                            std::string(f.name));
        },
        nb::arg("pool"), nb::arg("codes"), nb::arg("scales"), nb::arg("minima").none(), nb::arg("format"),
        nb::arg("group_size"), nb::arg("out"));
    m.def(
        "unpack_words",
        [](ThreadPool& pool, const Words& words, int order, int bits, int64_t first_row, const MutableCodes& out) {
            if (order < 0 || order > 2 || (bits != 4 && bits != 8))
                throw std::invalid_argument("words hold codes of 4 or 8 bits in order 0, 1 or 2");
            const int64_t rows = static_cast<int64_t>(out.shape(0)), k = static_cast<int64_t>(out.shape(1));
            const int64_t per = 32 / bits, width = static_cast<int64_t>(words.shape(1));
            const bool along_k = order == 0;
            const int64_t have_k = static_cast<int64_t>(words.shape(0)) * (along_k ? per : 1);
            const int64_t have_rows = width * (along_k ? 1 : per);
            if (first_row < 0 || first_row + rows > have_rows || k > have_k || (!along_k && first_row % per))
                throw std::out_of_range("rows [" + std::to_string(first_row) + ", " + std::to_string(first_row + rows) +
                                        ") and " + std::to_string(k) + " inputs of words that hold " +
                                        std::to_string(have_rows) + " and " + std::to_string(have_k));
            if (k > 1 && out.stride(1) != 1) throw std::invalid_argument("the rows of codes must be contiguous");
            const uint32_t* from = words.data();
            uint8_t* to = out.data();
            const int64_t stride = out.stride(0);
            nb::gil_scoped_release release;
            unpack_words(pool, from, width, static_cast<WordOrder>(order), bits, first_row, rows, k, to, stride);
        },
        nb::arg("pool"), nb::arg("words"), nb::arg("order"), nb::arg("bits"), nb::arg("first_row"), nb::arg("out"));
    m.def(
        "dequantize",
        [](ThreadPool& pool, int format, int64_t rows, int64_t k, int group_size, float multiplier, const Bytes& data,
           int64_t first_row, const MutableFloats& out) {
            const PackedView v = packed_view(format, rows, k, group_size, multiplier, data);
            const int64_t count = static_cast<int64_t>(out.shape(0));
            if (first_row < 0 || first_row + count > rows || static_cast<int64_t>(out.shape(1)) != k)
                throw std::out_of_range("rows [" + std::to_string(first_row) + ", " + std::to_string(first_row + count) +
                                        ") of a packed tensor with " + std::to_string(rows) + " rows");
            float* values = out.data();
            nb::gil_scoped_release release;
            dequantize(pool, v, first_row, count, values, k);
        },
        nb::arg("pool"), nb::arg("format"), nb::arg("rows"), nb::arg("k"), nb::arg("group_size"), nb::arg("multiplier"),
        nb::arg("data"), nb::arg("first_row"), nb::arg("out"));
    m.def(
        "gather_rows",
        [](int format, int64_t rows, int64_t k, int group_size, float multiplier, const Bytes& data, const Ids& ids,
           const MutableFloats& out) {
            const PackedView v = packed_view(format, rows, k, group_size, multiplier, data);
            const int64_t n = static_cast<int64_t>(ids.size());
            if (static_cast<int64_t>(out.shape(0)) != n || static_cast<int64_t>(out.shape(1)) != k)
                throw std::invalid_argument("the output must be [ids, k]");
            for (int64_t i = 0; i < n; i++)
                if (ids.data()[i] < 0 || ids.data()[i] >= rows)
                    throw std::out_of_range("row " + std::to_string(ids.data()[i]) + " of a packed tensor with " +
                                            std::to_string(rows) + " rows");
            const int32_t* first = ids.data();
            float* values = out.data();
            nb::gil_scoped_release release;
            gather_rows(v, first, n, values, k);
        },
        nb::arg("format"), nb::arg("rows"), nb::arg("k"), nb::arg("group_size"), nb::arg("multiplier"), nb::arg("data"),
        nb::arg("ids"), nb::arg("out"));
}
