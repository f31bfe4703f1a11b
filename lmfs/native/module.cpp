// lmfs.native._core: the bindings, but for the engine's. No algorithm lives here.
//
// Loops run without the interpreter's lock. A Vocabulary never changes and may be shared; the
// coders keep state, so each has its own lock and two threads on one object wait for each other.
// That lock is only ever taken without the interpreter's, so the two cannot deadlock.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "engine.hpp"
#include "engine_bindings.hpp"
#include "layout_bindings.hpp"
#include "mixer_bindings.hpp"
#include "token_coder.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using lmfs::FrequencyTable;
using lmfs::LogitRows;
using lmfs::Vocabulary;

using Logits = nb::ndarray<const std::int16_t, nb::ndim<2>, nb::device::cpu>;
using Tokens = nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Inputs = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using LastTokens = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::string_view view(const nb::bytes& bytes) {
    return {static_cast<const char*>(bytes.data()), bytes.size()};
}

nb::bytes to_bytes(nb::handle item) {
    if (!nb::isinstance<nb::bytes>(item)) throw nb::type_error("expected bytes");
    return nb::borrow<nb::bytes>(item);
}

std::size_t to_size(nb::handle item) {
    std::int64_t size = 0;
    if (!nb::try_cast(item, size)) throw nb::type_error("decoder: a size is not an integer");
    if (size < 0) throw std::invalid_argument("decoder: a size is negative");
    return static_cast<std::size_t>(size);
}

// As a Framework's array: memoryviews where coding asks for them, for numpy takes long to load.
template <typename Framework, typename T>
nb::ndarray<Framework, T, nb::ndim<1>> to_array(std::vector<T> values) {
    auto* owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return nb::ndarray<Framework, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner);
}

FrequencyTable to_table(const Table& table) { return FrequencyTable(table.data(), table.shape(0)); }

LogitRows to_rows(const Logits& logits, std::size_t rows, const Vocabulary& vocabulary) {
    if (logits.shape(0) != rows)
        throw std::invalid_argument("logits: expected " + std::to_string(rows) + " rows, got " +
                                    std::to_string(logits.shape(0)));
    if (logits.shape(1) != vocabulary.size())
        throw std::invalid_argument("logits: expected " + std::to_string(vocabulary.size()) +
                                    " columns, got " + std::to_string(logits.shape(1)));
    if (rows > 0 && logits.stride(1) != 1)
        throw std::invalid_argument("logits: a row is not contiguous");
    return {logits.data(), static_cast<std::ptrdiff_t>(logits.stride(0))};
}

std::shared_ptr<Vocabulary> make_vocabulary(nb::sequence spellings) {
    std::vector<nb::bytes> kept;  // keeps what the views look at
    std::vector<std::string_view> views;
    for (nb::handle item : spellings) {
        kept.push_back(to_bytes(item));
        views.push_back(view(kept.back()));
    }
    nb::gil_scoped_release unlocked;
    return std::make_shared<Vocabulary>(views);
}

std::string spell(const Vocabulary& vocabulary, const Tokens& tokens) {
    std::string data;
    for (std::size_t i = 0; i < tokens.shape(0); ++i) {
        const std::size_t token = tokens(i);
        if (token >= vocabulary.size())
            throw std::invalid_argument("token " + std::to_string(token) +
                                        " is not in the vocabulary");
        data.append(vocabulary.spelling(token));
    }
    return data;
}

struct Encoder : lmfs::TokenEncoder {
    using lmfs::TokenEncoder::TokenEncoder;
    std::mutex mutex;
};

struct Decoder : lmfs::TokenDecoder {
    using lmfs::TokenDecoder::TokenDecoder;
    std::mutex mutex;
};

void make_decoder(Decoder* self, std::shared_ptr<Vocabulary> vocabulary, const Table& table,
                  nb::sequence blobs, nb::sequence sizes, nb::object mixers, std::size_t strands) {
    std::vector<std::string> copies;
    for (nb::handle blob : blobs) copies.emplace_back(view(to_bytes(blob)));
    std::vector<std::size_t> numbers;
    for (nb::handle size : sizes) numbers.push_back(to_size(size));
    std::vector<lmfs::Mixer> own;
    if (!mixers.is_none())
        for (nb::handle mixer : nb::cast<nb::sequence>(mixers))
            own.push_back(nb::cast<const lmfs::SharedMixer&>(mixer).copy());
    new (self) Decoder(std::move(vocabulary), to_table(table), std::move(copies), numbers,
                       std::move(own), strands);
}

// A window of one chunk's strands, a lane each: what the model says of their tokens goes to the
// chunk's encoders. At the end of the chunk there may be fewer tokens than inputs, by less than one
// for each strand.
void encode(lmfs::engine::Engine& engine, lmfs::engine::Lanes& lanes, const nb::sequence& encoders,
            const Inputs& inputs, const Tokens& tokens, bool alone) {
    std::vector<Encoder*> lane_encoders;
    for (nb::handle encoder : encoders) lane_encoders.push_back(&nb::cast<Encoder&>(encoder));
    const std::size_t strands = lanes.size(), vocab = engine.model().sizes().vocab;
    const std::size_t time = strands ? (tokens.shape(0) + strands - 1) / strands : 0;
    if (strands == 0 || inputs.shape(0) != strands * time)
        throw std::invalid_argument("an input for each token, in lanes of one length, is needed");
    for (const Encoder* encoder : lane_encoders)
        if (encoder->vocabulary().size() != vocab || encoder->strands() != strands)
            throw std::invalid_argument("encoders of this vocabulary, and a lane for each of their "
                                        "strands, are needed");
    nb::gil_scoped_release unlocked;
    std::vector<std::int16_t> logits(strands * time * vocab);
    engine.run(lanes, inputs.data(), time, logits.data(), alone);
    for (Encoder* encoder : lane_encoders) {
        const std::lock_guard<std::mutex> lock(encoder->mutex);
        encoder->push({logits.data(), static_cast<std::ptrdiff_t>(vocab), strands,
                       static_cast<std::ptrdiff_t>(time * vocab)},
                      tokens.data(), tokens.shape(0));
    }
}

// Steps of an engine and of decoders of one chunk each, together: at most `steps` of them, fewer
// where a chunk ends. The lanes are the chunks' strands; `tokens` holds the last token of each, and
// then the new ones.
std::size_t advance(lmfs::engine::Engine& engine, lmfs::engine::Lanes& lanes,
                    const nb::sequence& decoders, const LastTokens& tokens, std::size_t steps,
                    bool alone) {
    std::vector<Decoder*> lane_decoders;
    for (nb::handle decoder : decoders) lane_decoders.push_back(&nb::cast<Decoder&>(decoder));
    const std::size_t vocab = engine.model().sizes().vocab;
    nb::gil_scoped_release unlocked;
    std::size_t strands = 0;  // of all decoders
    for (Decoder* decoder : lane_decoders) {
        const std::lock_guard<std::mutex> lock(decoder->mutex);
        if (decoder->active().size() != 1 || decoder->vocabulary().size() != vocab)
            throw std::invalid_argument("a decoder of one chunk of this vocabulary is needed");
        strands += decoder->strands();
    }
    if (lanes.size() != strands || tokens.shape(0) != strands)
        throw std::invalid_argument("a lane and a token for each strand are needed");
    std::vector<std::int16_t> logits(strands * vocab);
    bool ended = false;
    std::size_t done = 0;
    for (; done < steps && !ended; ++done) {
        engine.run(lanes, tokens.data(), 1, logits.data(), alone);
        std::size_t first = 0;  // of its lanes
        for (std::size_t k = 0; k < lane_decoders.size(); ++k) {
            Decoder& decoder = *lane_decoders[k];
            if (k + 1 < lane_decoders.size()) {
                const std::lock_guard<std::mutex> lock(lane_decoders[k + 1]->mutex);
                lane_decoders[k + 1]->foresee();
            }
            const std::lock_guard<std::mutex> lock(decoder.mutex);
            const LogitRows rows{logits.data() + first * vocab, static_cast<std::ptrdiff_t>(vocab)};
            std::ranges::copy(decoder.step(rows), tokens.data() + first);
            first += decoder.strands();
            ended = ended || decoder.active().empty();
        }
    }
    return done;
}

}  // namespace

NB_MODULE(_core, module) {
    nb::set_leak_warnings(false);  // what caches hold at the end of a program is no leak
    module.attr("PROBABILITY_BITS") = lmfs::kProbabilityBits;

    nb::class_<Vocabulary>(module, "Vocabulary")
        .def(nb::new_(&make_vocabulary), "spellings"_a)
        .def("__len__", &Vocabulary::size)
        .def(
            "tokenize",
            [](const Vocabulary& self, const nb::bytes& data) {
                std::vector<std::uint16_t> tokens;
                {
                    nb::gil_scoped_release unlocked;
                    tokens = self.tokenize(view(data));
                }
                return to_array<nb::memview>(std::move(tokens));
            },
            "data"_a)
        .def(
            "spell",
            [](const Vocabulary& self, const Tokens& tokens) {
                std::string data;
                {
                    nb::gil_scoped_release unlocked;
                    data = spell(self, tokens);
                }
                return nb::bytes(data.data(), data.size());
            },
            nb::arg("tokens").noconvert());

    nb::class_<Encoder>(module, "TokenEncoder")
        .def(
            "__init__",
            [](Encoder* self, std::shared_ptr<Vocabulary> vocabulary, const Table& table,
               const lmfs::SharedMixer* mixer, std::size_t strands, std::size_t size) {
                std::optional<lmfs::Mixer> own;
                if (mixer) own = mixer->copy();
                new (self) Encoder(std::move(vocabulary), to_table(table), std::move(own), strands,
                                   size);
            },
            "vocabulary"_a, nb::arg("table").noconvert(), "mixer"_a = nb::none(), "strands"_a = 1,
            "size"_a = 0)
        .def(
            "push",
            [](Encoder& self, const Logits& logits, const Tokens& tokens) {
                const std::size_t time = tokens.shape(0);
                const LogitRows rows = to_rows(logits, time, self.vocabulary());
                nb::gil_scoped_release unlocked;
                const std::lock_guard<std::mutex> lock(self.mutex);
                self.push(rows, tokens.data(), time);
            },
            nb::arg("logits").noconvert(), nb::arg("tokens").noconvert())
        .def("finish",
             [](Encoder& self) {
                 std::vector<std::uint8_t> blob;
                 {
                     nb::gil_scoped_release unlocked;
                     const std::lock_guard<std::mutex> lock(self.mutex);
                     blob = self.finish();
                 }
                 return nb::bytes(blob.data(), blob.size());
             })
        .def_prop_ro("mixer",
                     [](Encoder& self) {
                         nb::gil_scoped_release unlocked;
                         const std::lock_guard<std::mutex> lock(self.mutex);
                         return self.mixer() ? std::make_unique<lmfs::SharedMixer>(*self.mixer())
                                             : nullptr;
                     },
                     nb::rv_policy::automatic)
        .def_prop_ro("ideal_bits", [](Encoder& self) {
            nb::gil_scoped_release unlocked;
            const std::lock_guard<std::mutex> lock(self.mutex);
            return self.ideal_bits();
        });

    nb::class_<Decoder>(module, "TokenDecoder")
        .def("__init__", &make_decoder, "vocabulary"_a, nb::arg("table").noconvert(), "blobs"_a,
             "sizes"_a, "mixers"_a = nb::none(), "strands"_a = 1)
        .def_prop_ro("strands", &Decoder::strands)
        .def_prop_ro(
            "active",
            [](Decoder& self) {
                std::vector<std::int64_t> active;
                {
                    nb::gil_scoped_release unlocked;
                    const std::lock_guard<std::mutex> lock(self.mutex);
                    active = self.active();
                }
                return to_array<nb::memview>(std::move(active));
            },
            // A property's own policy would tie a copy to the decoder's life.
            nb::rv_policy::automatic)
        .def(
            "step",
            [](Decoder& self, const Logits& logits) {
                std::vector<std::int64_t> tokens;
                {
                    nb::gil_scoped_release unlocked;
                    const std::lock_guard<std::mutex> lock(self.mutex);
                    const LogitRows rows =
                        to_rows(logits, self.active().size() * self.strands(), self.vocabulary());
                    tokens = self.step(rows);
                }
                return to_array<nb::numpy>(std::move(tokens));
            },
            nb::arg("logits").noconvert())
        .def(
            "take_mixer",
            [](Decoder& self, std::size_t lane) {
                nb::gil_scoped_release unlocked;
                const std::lock_guard<std::mutex> lock(self.mutex);
                if (lane >= self.lanes()) throw std::invalid_argument("decoder: no such lane");
                std::optional<lmfs::Mixer> mixer = self.take_mixer(lane);
                return mixer ? std::make_unique<lmfs::SharedMixer>(std::move(*mixer)) : nullptr;
            },
            "lane"_a)
        .def("chunks", [](Decoder& self) {
            std::vector<std::optional<std::string>> chunks;
            {
                nb::gil_scoped_release unlocked;
                const std::lock_guard<std::mutex> lock(self.mutex);
                for (std::size_t lane = 0; lane < self.lanes(); ++lane)
                    chunks.emplace_back(self.chunk(lane));
            }
            nb::list result;
            for (const std::optional<std::string>& chunk : chunks) {
                if (chunk) {
                    result.append(nb::bytes(chunk->data(), chunk->size()));
                } else {
                    result.append(nb::none());
                }
            }
            return result;
        });

    lmfs::bind_engine(module);
    lmfs::bind_layout(module);
    lmfs::bind_mixer(module);

    module.def("encode", &encode, "engine"_a, "lanes"_a, "encoders"_a,
               nb::arg("inputs").noconvert(), nb::arg("tokens").noconvert(), "alone"_a);
    module.def("advance", &advance, "engine"_a, "lanes"_a, "decoders"_a,
               nb::arg("tokens").noconvert(), "steps"_a, "alone"_a);
}
