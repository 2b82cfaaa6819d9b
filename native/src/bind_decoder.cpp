#include "bind.h"

void bind_decoder(nb::module_&) {}
