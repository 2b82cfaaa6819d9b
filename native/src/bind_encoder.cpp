// Encoder as Python sees it. A spec crosses as EncoderSpec.to_dict(), field by field.
#include <memory>
#include <stdexcept>

#include <nanobind/stl/map.h>

#include "bind_spec.h"
#include "lowbit/encoder.h"

using namespace lowbit;

namespace {

// The fields of EncoderSpec in spec.h; a test holds them equal to models/_spec.py.
#define SPEC_FIELDS(X)                                                                                               \
    X(family)                                                                                                        \
    X(vocab_size)                                                                                                    \
    X(hidden_size) X(layers) X(heads) X(head_dim) X(ffn_size) X(context) X(norm_place) X(norm_eps) X(final_norm)     \
        X(token_types) X(learned_position_offset) X(ropes) X(layer_rope) X(layer_reach) X(relative_buckets) X(gated) \
            X(activation) X(labels) X(head_pooling) X(head_activation)

EncoderSpec read_spec(nb::dict data) {
    EncoderSpec spec;
    read_fields(data, "EncoderSpec", [&](const std::string& name, nb::handle v) {
#define X(field) \
    if (name == #field) return read(v, spec.field), true;
        SPEC_FIELDS(X)
#undef X
        return false;
    });
    return spec;
}

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ends = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Keeps the arrays alive that the encoder views.
struct BoundEncoder {
    std::vector<Bytes> arrays;
    std::unique_ptr<Encoder> encoder;
};

void construct(BoundEncoder* self, nb::dict spec, nb::dict packed, nb::dict vectors, const std::string& compute,
               const std::string& tier, const std::vector<std::string>& exact) {
    const Tier at = read_tier(tier);
    const Compute type = static_cast<Compute>(index_of(kComputes, compute, "compute type"));
    BoundWeights bound = read_weights(packed, vectors, exact);
    new (self) BoundEncoder{std::move(bound.arrays),
                            std::make_unique<Encoder>(read_spec(spec), std::move(bound.weights), type, at)};
}

// Checks that the arrays of a call belong together.
Texts texts_of(const Tokens& tokens, const std::optional<Tokens>& types, const Ends& ends) {
    const int64_t count = static_cast<int64_t>(ends.shape(0)), rows = static_cast<int64_t>(tokens.shape(0));
    int64_t before = 0;
    for (int64_t i = 0; i < count; i++) {
        if (ends(i) < before || ends(i) > rows)
            throw std::invalid_argument("ends must ascend and stay within the tokens");
        before = ends(i);
    }
    if (before != rows) throw std::invalid_argument("the last end must be the number of tokens");
    if (types && types->shape(0) != tokens.shape(0)) throw std::invalid_argument("types must be one per token");
    return {tokens.data(), types ? types->data() : nullptr, ends.data(), count};
}

using Result = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

template <class Run>
Result run(size_t rows, size_t columns, Run&& pass) {
    std::unique_ptr<float[]> out(new float[rows * columns]);
    {
        nb::gil_scoped_release release;
        pass(out.get());
    }
    float* data = out.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return {data, {rows, columns}, owner};
}

Result hidden_states(BoundEncoder& self, ThreadPool& pool, Tokens tokens, std::optional<Tokens> types, Ends ends) {
    const Texts texts = texts_of(tokens, types, ends);
    return run(tokens.shape(0), self.encoder->spec().hidden_size,
               [&](float* out) { self.encoder->hidden_states(pool, texts, out); });
}

Result embed(BoundEncoder& self, ThreadPool& pool, Tokens tokens, std::optional<Tokens> types, Ends ends,
             const std::vector<std::string>& names) {
    const Texts texts = texts_of(tokens, types, ends);
    std::vector<Pooling> poolings;
    for (const std::string& name : names)
        poolings.push_back(static_cast<Pooling>(index_of(kPoolingNames, name, "pooling")));
    return run(ends.shape(0), names.size() * self.encoder->spec().hidden_size,
               [&](float* out) { self.encoder->embed(pool, texts, poolings, out); });
}

Result classify(BoundEncoder& self, ThreadPool& pool, Tokens tokens, std::optional<Tokens> types, Ends ends) {
    const Texts texts = texts_of(tokens, types, ends);
    return run(ends.shape(0), self.encoder->spec().labels,
               [&](float* out) { self.encoder->classify(pool, texts, out); });
}

std::map<std::string, double> activation_errors(BoundEncoder& self, ThreadPool& pool, Tokens tokens,
                                                std::optional<Tokens> types, Ends ends) {
    const Texts texts = texts_of(tokens, types, ends);
    nb::gil_scoped_release release;
    return self.encoder->activation_errors(pool, texts);
}

}  // namespace

void bind_encoder(nb::module_& m) {
    nb::class_<BoundEncoder>(m, "Encoder")
        .def("__init__", &construct, nb::arg("spec"), nb::arg("packed"), nb::arg("vectors"), nb::arg("compute"),
             nb::arg("tier"), nb::arg("exact"))
        .def("hidden_states", &hidden_states, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(),
             nb::arg("ends"))
        .def("embed", &embed, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(), nb::arg("ends"),
             nb::arg("poolings"))
        .def("classify", &classify, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(), nb::arg("ends"))
        .def("activation_errors", &activation_errors, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(),
             nb::arg("ends"))
        .def(
            "profile", [](BoundEncoder& e, bool on) { e.encoder->profile(on); }, nb::arg("on"))
        .def("phase_seconds", [](const BoundEncoder& e) {
            const PhaseTimes times = e.encoder->phase_times();
            nb::dict result;
            for (int i = 0; i < kPhases; i++) result[kPhaseNames[i]] = times.seconds[i];
            return result;
        });
    m.def("encoder_spec_fields", [] {  // what crosses
        nb::list spec;
#define X(field) spec.append(#field);
        SPEC_FIELDS(X)
#undef X
        return spec;
    });
}
