// What module.cpp calls to add the parser of frame heads to the module.

#pragma once

#include <nanobind/nanobind.h>

namespace lmfs {

void bind_layout(nanobind::module_& module);

}  // namespace lmfs
