// What module.cpp calls to add the engine to the module.

#pragma once

#include <nanobind/nanobind.h>

namespace lmfs {

void bind_engine(nanobind::module_& module);

}  // namespace lmfs
