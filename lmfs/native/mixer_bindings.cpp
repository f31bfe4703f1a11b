// lmfs.native._core: bindings of the mixer. No algorithm lives here.

#include "mixer_bindings.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>

#include <cmath>
#include <mutex>
#include <optional>
#include <tuple>

#include "token_coder.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace lmfs {

namespace {

std::string_view view(const nb::bytes& bytes) {
    return {static_cast<const char*>(bytes.data()), bytes.size()};
}

using Bits = std::tuple<int, int, int>;  // slots, runs, places

mixing::Sizes to_sizes(const Bits& bits) {
    return {std::get<0>(bits), std::get<1>(bits), std::get<2>(bits)};
}

nb::bytes adaptive_bytes(const Mixer& mixer) {
    return nb::bytes(reinterpret_cast<const char*>(&mixer.adaptive()), sizeof(mixing::Adaptive));
}

// A coder and the mixer that it goes on with. Python keeps the mixer alive.
template <class Coder>
struct OnMixer {
    template <class... Arguments>
    explicit OnMixer(SharedMixer& mixer, Arguments&&... arguments)
        : mixer(mixer), coder(std::forward<Arguments>(arguments)...) {}

    bool go_on(std::size_t most) {
        nb::gil_scoped_release unlocked;
        const std::lock_guard<std::mutex> lock(mixer.mutex);
        return coder.go_on(mixer.mixer, most);
    }

    SharedMixer& mixer;
    Coder coder;
};

}  // namespace

Mixer SharedMixer::copy() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return mixer;
}

void bind_mixer(nb::module_& module) {
    nb::class_<MixerProfile>(module, "MixerProfile")
        .def(nb::new_([](const nb::bytes& data, Bits sizes, std::optional<Bits> lane) {
                 std::optional<mixing::Sizes> of_lane;
                 if (lane) of_lane = to_sizes(*lane);
                 return std::make_shared<MixerProfile>(view(data), to_sizes(sizes), of_lane);
             }),
             "data"_a, "sizes"_a, "lane"_a = nb::none())
        .def_ro_static("BYTES", &MixerProfile::kBytes);

    nb::class_<SharedMixer>(module, "Mixer")
        .def(
            "__init__",
            [](SharedMixer* self, std::shared_ptr<MixerProfile> profile,
               std::shared_ptr<Vocabulary> vocabulary) {
                new (self) SharedMixer(Mixer(std::move(profile), std::move(vocabulary)));
            },
            "profile"_a, "vocabulary"_a)
        .def("copy",
             [](const SharedMixer& self) {
                 nb::gil_scoped_release unlocked;
                 return std::make_unique<SharedMixer>(self.copy());
             })
        .def("branch",
             [](const SharedMixer& self, std::size_t strands) {
                 if (strands == 0) throw std::invalid_argument("mixer: strands");
                 nb::gil_scoped_release unlocked;
                 const std::lock_guard<std::mutex> lock(self.mutex);
                 return std::make_unique<SharedMixer>(self.mixer.branch(strands));
             },
             "strands"_a = 1)
        .def("forget",
             [](SharedMixer& self) {
                 nb::gil_scoped_release unlocked;
                 const std::lock_guard<std::mutex> lock(self.mutex);
                 self.mixer.forget();
             })
        .def(
            "prime",
            [](SharedMixer& self, const nb::bytes& data, std::size_t piece) {
                if (piece == 0) throw std::invalid_argument("mixer: pieces of no bytes");
                nb::gil_scoped_release unlocked;
                const std::lock_guard<std::mutex> lock(self.mutex);
                return self.mixer.prime(view(data), piece);
            },
            "data"_a, "piece"_a)
        .def(
            "encode",
            [](SharedMixer& self, const nb::bytes& chunk) {
                std::vector<std::uint8_t> blob;
                {
                    nb::gil_scoped_release unlocked;
                    const std::lock_guard<std::mutex> lock(self.mutex);
                    blob = encode_with(self.mixer, view(chunk));
                }
                return nb::bytes(blob.data(), blob.size());
            },
            "chunk"_a)
        .def(
            "decode",
            [](SharedMixer& self, const nb::bytes& blob, std::size_t size) -> nb::object {
                std::optional<std::string> chunk;
                {
                    nb::gil_scoped_release unlocked;
                    const std::lock_guard<std::mutex> lock(self.mutex);
                    chunk = decode_with(self.mixer, view(blob), size);
                }
                if (!chunk) return nb::none();
                return nb::bytes(chunk->data(), chunk->size());
            },
            "blob"_a, "size"_a)
        .def("adaptive", [](const SharedMixer& self) { return adaptive_bytes(self.copy()); })
        .def_prop_ro("used_bytes", [](const SharedMixer& self) {
            const std::lock_guard<std::mutex> lock(self.mutex);
            return self.mixer.used_bytes();
        });

    using Encoder = OnMixer<MixEncoder>;
    nb::class_<Encoder>(module, "MixEncoder")
        .def(
            "__init__",
            [](Encoder* self, SharedMixer& mixer, const nb::bytes& chunk) {
                new (self) Encoder(mixer, mixer.mixer.vocabulary(), view(chunk));
            },
            "mixer"_a, "chunk"_a, nb::keep_alive<1, 2>())
        .def("go_on", &Encoder::go_on, "tokens"_a)
        .def("finish", [](Encoder& self) {
            const std::vector<std::uint8_t> blob = self.coder.finish();
            return nb::bytes(blob.data(), blob.size());
        });

    using Decoder = OnMixer<MixDecoder>;
    nb::class_<Decoder>(module, "MixDecoder")
        .def(
            "__init__",
            [](Decoder* self, SharedMixer& mixer, const nb::bytes& blob, std::size_t size) {
                new (self) Decoder(mixer, std::string(view(blob)), size);
            },
            "mixer"_a, "blob"_a, "size"_a, nb::keep_alive<1, 2>())
        .def("go_on", &Decoder::go_on, "tokens"_a)
        .def("chunk", [](const Decoder& self) -> nb::object {
            const std::optional<std::string_view> chunk = self.coder.chunk();
            if (!chunk) return nb::none();
            return nb::bytes(chunk->data(), chunk->size());
        });
}

}  // namespace lmfs
