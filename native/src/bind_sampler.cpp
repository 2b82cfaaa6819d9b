// The sampler as Python sees it: one row of logits in, one token out.
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bind.h"
#include "lowbit/sampler.h"

using namespace lowbit;

namespace {

using Logits = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::tuple sample_row(Logits logits, float temperature, int32_t top_k, float top_p, float min_p, float repetition_penalty,
                     float presence_penalty, float frequency_penalty, int32_t top_logprobs, Ids prompt, Ids output,
                     std::optional<Mask> mask, uint64_t seed, uint64_t position) {
    const int64_t vocab = static_cast<int64_t>(logits.shape(0));
    if (mask && static_cast<int64_t>(mask->shape(0)) != (vocab + 31) / 32)
        throw std::invalid_argument("mask needs " + std::to_string((vocab + 31) / 32) + " words for " + std::to_string(vocab) +
                                    " logits, got " + std::to_string(mask->shape(0)));
    if (!(temperature >= 0) || top_k < 0 || !(top_p > 0 && top_p <= 1) || !(min_p >= 0 && min_p <= 1) || !(repetition_penalty > 0))
        throw std::invalid_argument("sampling parameter out of range (lowbit.sampling checks them with better words)");
    SamplingParams params{temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, top_logprobs};
    Sampled s;
    {
        nb::gil_scoped_release release;
        s = sample(logits.data(), vocab, params, prompt.data(), static_cast<int64_t>(prompt.shape(0)), output.data(),
                   static_cast<int64_t>(output.shape(0)), mask ? mask->data() : nullptr, seed, position);
    }
    return nb::make_tuple(s.token, s.logprob, s.alternatives);
}

}  // namespace

void bind_sampler(nb::module_& m) {
    m.def("sample", &sample_row, nb::arg("logits"), nb::kw_only(), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"),
          nb::arg("min_p"), nb::arg("repetition_penalty"), nb::arg("presence_penalty"), nb::arg("frequency_penalty"),
          nb::arg("top_logprobs"), nb::arg("prompt"), nb::arg("output"), nb::arg("mask") = nb::none(), nb::arg("seed"),
          nb::arg("position"));
    m.def("uniform_draw", &uniform_draw, nb::arg("seed"), nb::arg("position"));
}
