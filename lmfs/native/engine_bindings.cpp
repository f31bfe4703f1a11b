// The engine's bindings. Steps run without the interpreter's lock.

#include "engine_bindings.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "engine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace lmfs {
namespace {

using engine::Engine;
using engine::Lanes;
using engine::Sizes;
using engine::Tensor;
using engine::Tensors;

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<nb::numpy, std::int16_t, nb::ndim<3>, nb::c_contig>;

// Views of the arrays of `weights`, which `kept` then holds.
Tensors to_tensors(const nb::dict& weights, std::vector<Array>& kept) {
    Tensors tensors;
    for (auto [key, value] : weights) {
        const auto name = nb::cast<std::string>(key);
        Array array;
        if (!nb::try_cast(value, array, false))
            throw std::invalid_argument(name + ": not a contiguous array");
        Tensor tensor{};
        if (array.dtype() == nb::dtype<std::int8_t>())
            tensor.bytes = static_cast<const std::int8_t*>(array.data());
        else if (array.dtype() == nb::dtype<float>())
            tensor.reals = static_cast<const float*>(array.data());
        else
            throw std::invalid_argument(name + ": expected int8 or float32");
        for (std::size_t k = 0; k < array.ndim(); ++k) tensor.shape.push_back(array.shape(k));
        tensors[name] = std::move(tensor);
        kept.push_back(std::move(array));
    }
    return tensors;
}

void make_engine(Engine* self, std::size_t vocab, std::size_t width, std::size_t layers,
                 std::size_t hidden, std::size_t hash_rows, const nb::dict& weights,
                 std::string_view isa, std::size_t threads) {
    std::vector<Array> kept;
    const Tensors tensors = to_tensors(weights, kept);
    nb::gil_scoped_release unlocked;
    new (self) Engine({vocab, width, layers, hidden, hash_rows}, tensors, isa, threads);
}

Lanes join(const nb::sequence& parts) {
    std::vector<const Lanes*> pointers;
    for (nb::handle part : parts) pointers.push_back(&nb::cast<const Lanes&>(part));
    return Lanes::join(pointers);
}

// Logits (lanes, time, vocabulary) as a numpy array of their own.
Logits run(Engine& self, Lanes& lanes, const Tokens& tokens, bool alone) {
    if (tokens.shape(0) != lanes.size())
        throw std::invalid_argument("tokens: expected " + std::to_string(lanes.size()) +
                                    " lanes, got " + std::to_string(tokens.shape(0)));
    const std::size_t count = tokens.shape(0), time = tokens.shape(1);
    const std::size_t vocab = self.model().sizes().vocab;
    auto* logits = new std::int16_t[count * time * vocab];
    nb::capsule owner(logits, [](void* p) noexcept { delete[] static_cast<std::int16_t*>(p); });
    {
        nb::gil_scoped_release unlocked;
        self.run(lanes, tokens.data(), time, logits, alone);
    }
    return Logits(logits, {count, time, vocab}, owner);
}

}  // namespace

void bind_engine(nb::module_& module) {
    nb::class_<Lanes>(module, "Lanes")
        .def("__len__", &Lanes::size)
        .def(
            "select",
            [](const Lanes& self, const Indices& lanes) {
                return self.select(lanes.data(), lanes.shape(0));
            },
            nb::arg("lanes").noconvert())
        .def_static("join", &join, "parts"_a);

    nb::class_<Engine>(module, "Engine")
        .def("__init__", &make_engine, nb::kw_only(), "vocab"_a, "width"_a, "layers"_a, "hidden"_a,
             "hash_rows"_a, "weights"_a, "isa"_a = "", "threads"_a = 1)
        .def_prop_ro("isa", [](const Engine& self) { return std::string(self.isa()); })
        .def_prop_ro("threads", &Engine::threads)
        .def_prop_ro("products", [](const Engine& self) { return self.model().products(); })
        .def("start",
             [](const Engine& self, std::size_t lanes) {
                 return Lanes(self.model().sizes(), lanes);
             },
             "lanes"_a)
        .def("run", &run, "lanes"_a, nb::arg("tokens").noconvert(), "alone"_a = false);

    module.def("usable_isas", [] {
        std::vector<std::string> names;
        for (const engine::Isa& isa : engine::usable_isas()) names.emplace_back(isa.name);
        return names;
    });
}

}  // namespace lmfs
