// What the bindings of the decoder and of the encoder share.
#pragma once
#include <memory>

#include "bind_spec.h"
#include "lowbit/phases.h"

namespace lowbit {

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

template <class Model>
struct Bound {
    std::vector<Bytes> arrays;  // what the model views
    std::unique_ptr<Model> model;
};

// Returns what `pass` writes to [rows][columns], without the GIL.
template <class Pass>
Rows rows_of(size_t rows, size_t columns, Pass&& pass) {
    std::unique_ptr<float[]> out(new float[rows * columns]);
    {
        nb::gil_scoped_release release;
        pass(out.get());
    }
    float* data = out.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return {data, {rows, columns}, owner};
}

// The class of Bound<Model> with what both models have: how they are made, and the times of their phases.
template <class Model, class Spec>
nb::class_<Bound<Model>> bind_model(nb::module_& m, const char* name, Spec (*read_spec)(nb::dict)) {
    using Self = Bound<Model>;
    nb::class_<Self> bound(m, name);
    bound.def(
        "__init__",
        [read_spec](Self* self, nb::dict spec, nb::dict packed, nb::dict vectors, const std::string& compute, const std::string& tier,
                    const std::vector<std::string>& outliers) {
            const KernelTable& kernels = read_kernels(tier);
            const Compute type = static_cast<Compute>(index_of(kComputes, compute, "compute type"));
            BoundWeights weights = read_weights(packed, vectors, outliers);
            new (self) Self{std::move(weights.arrays),
                            std::make_unique<Model>(read_spec(spec), std::move(weights.weights), type, kernels)};
        },
        nb::arg("spec"), nb::arg("packed"), nb::arg("vectors"), nb::arg("compute"), nb::arg("tier"), nb::arg("outliers"));
    bound.def(
        "profile", [](Self& self, bool on) { self.model->profile(on); }, nb::arg("on"));
    bound.def("phase_seconds", [](const Self& self) {
        const PhaseTimes times = self.model->phase_times();
        nb::dict result;
        for (int i = 0; i < kPhases; i++) result[kPhaseNames[i]] = times.seconds[i];
        return result;
    });
    return bound;
}

}  // namespace lowbit
