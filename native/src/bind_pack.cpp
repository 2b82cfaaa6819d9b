#include "bind.h"

void bind_pack(nb::module_&) {}
