#include "bind.h"

void bind_sampler(nb::module_&) {}
