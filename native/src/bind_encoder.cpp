// Encoder as Python sees it. A spec crosses as EncoderSpec.to_dict(), field by field.
#include <stdexcept>

#include <nanobind/stl/map.h>

#include "bind_model.h"
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

using BoundEncoder = Bound<Encoder>;
using Ends = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

Rows hidden_states(BoundEncoder& self, ThreadPool& pool, Tokens tokens, std::optional<Tokens> types, Ends ends) {
    const Texts texts = texts_of(tokens, types, ends);
    return rows_of(tokens.shape(0), self.model->spec().hidden_size,
               [&](float* out) { self.model->hidden_states(pool, texts, out); });
}

Rows embed(BoundEncoder& self, ThreadPool& pool, Tokens tokens, std::optional<Tokens> types, Ends ends,
             const std::vector<std::string>& names) {
    const Texts texts = texts_of(tokens, types, ends);
    std::vector<Pooling> poolings;
    for (const std::string& name : names)
        poolings.push_back(static_cast<Pooling>(index_of(kPoolingNames, name, "pooling")));
    return rows_of(ends.shape(0), names.size() * self.model->spec().hidden_size,
               [&](float* out) { self.model->embed(pool, texts, poolings, out); });
}

Rows classify(BoundEncoder& self, ThreadPool& pool, Tokens tokens, std::optional<Tokens> types, Ends ends) {
    const Texts texts = texts_of(tokens, types, ends);
    return rows_of(ends.shape(0), self.model->spec().labels,
               [&](float* out) { self.model->classify(pool, texts, out); });
}

std::map<std::string, double> activation_errors(BoundEncoder& self, ThreadPool& pool, Tokens tokens,
                                                std::optional<Tokens> types, Ends ends) {
    const Texts texts = texts_of(tokens, types, ends);
    nb::gil_scoped_release release;
    return self.model->activation_errors(pool, texts);
}

}  // namespace

void bind_encoder(nb::module_& m) {
    bind_model<Encoder>(m, "Encoder", read_spec)
        .def("hidden_states", &hidden_states, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(),
             nb::arg("ends"))
        .def("embed", &embed, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(), nb::arg("ends"),
             nb::arg("poolings"))
        .def("classify", &classify, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(), nb::arg("ends"))
        .def("activation_errors", &activation_errors, nb::arg("pool"), nb::arg("tokens"), nb::arg("types").none(),
             nb::arg("ends"));
    m.def("encoder_spec_fields", [] {  // what crosses
        nb::list spec;
#define X(field) spec.append(#field);
        SPEC_FIELDS(X)
#undef X
        return spec;
    });
}
