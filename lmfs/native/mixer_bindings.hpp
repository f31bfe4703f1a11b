// The Python class `Mixer`: a mixer with a lock, since it keeps state.

#pragma once

#include <nanobind/nanobind.h>

#include <mutex>
#include <utility>

#include "mixer.hpp"

namespace lmfs {

struct SharedMixer {
    explicit SharedMixer(Mixer start) : mixer(std::move(start)) {}

    Mixer copy() const;

    Mixer mixer;
    mutable std::mutex mutex;
};

void bind_mixer(nanobind::module_& module);

}  // namespace lmfs
