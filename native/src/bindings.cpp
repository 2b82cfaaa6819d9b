// The extension module lowbit._native. Files named bind*.cpp are the only ones that include nanobind; each part of the
// engine has one. Every call that computes releases the GIL.
#include "bind.h"

NB_MODULE(_native, m) {
    m.doc() = "Native engine of lowbit; use it through lowbit.ops.";
    bind_runtime(m);
    bind_pack(m);
    bind_linear(m);
    bind_decoder(m);
    bind_encoder(m);
    bind_sampler(m);
    bind_bench(m);
    bind_vector(m);
    bind_code_attention(m);
}
