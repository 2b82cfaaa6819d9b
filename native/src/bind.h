// Shared by the binding files: array types and one registration function per part.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "lowbit/kernels.h"
#include "lowbit/tensor.h"

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The view of packed bytes; throws std::invalid_argument when the format is unknown or the size is not the layout's.
lowbit::PackedView packed_view(int format, int64_t rows, int64_t k, int group_size, float multiplier, const Bytes& data);

// The kernels of a tier by its number; after the last tier come, for tests, avx2 without AVX-VNNI and the model of amx. Throws
// std::invalid_argument when this machine cannot run it.
inline constexpr int kAvx2WithoutVnni = static_cast<int>(lowbit::Tier::amx) + 1, kAmxModel = kAvx2WithoutVnni + 1;
const lowbit::KernelTable& kernels_of(int tier);

// A compute type by its number; throws std::invalid_argument for any other.
lowbit::Compute compute_of(int compute);

void bind_runtime(nb::module_& m);
void bind_pack(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_decoder(nb::module_& m);
void bind_encoder(nb::module_& m);
void bind_sampler(nb::module_& m);
void bind_bench(nb::module_& m);
void bind_vector(nb::module_& m);
void bind_code_attention(nb::module_& m);
