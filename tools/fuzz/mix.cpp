// libFuzzer target: primers and blobs that nobody wrote, through the mixer and the range coder.
//
//   python -m lmfs_tools.fuzz FOLDER [--seconds N]
//
// An input is a control byte (bit 0: in lanes; bit 1: in front of the primer's state), the lengths of a primer and of a chunk, then the primer's bytes and
// the blob. Whatever it is: no crash, no undefined behaviour, and what decodes must encode to the
// very same blob (there is only one).

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../../lmfs/native/token_coder.hpp"

namespace {

std::string read(const char* variable) {
    const char* path = std::getenv(variable);
    if (!path) {
        std::fprintf(stderr, "%s is not set\n", variable);
        std::exit(2);
    }
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

struct Fixture {
    // Spellings, each behind its length in one byte; and the data of a coder profile.
    Fixture() {
        const std::string packed = read("LMFS_FUZZ_VOCABULARY");
        std::vector<std::string_view> spellings;
        for (std::size_t at = 0; at < packed.size();) {
            const auto length = static_cast<std::uint8_t>(packed[at]);
            spellings.push_back(std::string_view(packed).substr(at + 1, length));
            at += 1 + length;
        }
        vocabulary = std::make_shared<lmfs::Vocabulary>(spellings);
        // Lanes so small that much of what they find is behind them, and much thrown out.
        profile = std::make_shared<lmfs::MixerProfile>(read("LMFS_FUZZ_PROFILE"),
                                                       lmfs::mixing::Sizes{17, 14, 15},
                                                       lmfs::mixing::Sizes{9, 4, 5});
        start = std::make_unique<lmfs::Mixer>(profile, vocabulary);
    }

    std::shared_ptr<const lmfs::Vocabulary> vocabulary;
    std::shared_ptr<const lmfs::MixerProfile> profile;
    std::unique_ptr<lmfs::Mixer> start;
};

void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}

void through_mixer(const lmfs::Mixer& start, std::string_view blob, std::size_t size) {
    lmfs::Mixer mixer = start;
    const auto chunk = lmfs::decode_with(mixer, blob, size);
    if (!chunk) return;
    if (chunk->size() != size) fail("a chunk of another size");
    lmfs::Mixer again = start;
    const auto encoded = lmfs::encode_with(again, *chunk);
    if (std::string_view(reinterpret_cast<const char*>(encoded.data()), encoded.size()) != blob)
        fail("a blob that the encoder would not write was taken");
}

// Two lanes in lockstep, in strands, with logits made of the input; each must be what it is alone.
void through_lanes(const Fixture& fixture, const lmfs::Mixer& start, std::string_view blob,
                   std::size_t size, std::size_t strands) {
    const std::vector<std::uint32_t> frequencies{1u << 24, 1u << 20, 1u << 12, 16, 1};
    const lmfs::FrequencyTable table(frequencies.data(), frequencies.size());
    const std::size_t width = fixture.vocabulary->size();
    std::vector<std::int16_t> logits(width);
    for (std::size_t i = 0; i < width; ++i)
        logits[i] = static_cast<std::int16_t>(
            blob.empty() ? 0 : static_cast<std::uint8_t>(blob[i % blob.size()]) * 7 - 400);
    const std::string half(blob.substr(0, blob.size() / 2));
    const auto decode = [&](std::vector<std::string> blobs) {
        const std::vector<std::size_t> sizes(blobs.size(), size);
        const std::vector<lmfs::Mixer> mixers(blobs.size(), start);
        lmfs::TokenDecoder decoder(fixture.vocabulary, table, std::move(blobs), sizes, mixers,
                                   strands);
        while (!decoder.active().empty()) decoder.step({logits.data(), 0});
        std::vector<std::string> chunks;
        for (std::size_t lane = 0; lane < decoder.lanes(); ++lane)
            chunks.emplace_back(decoder.chunk(lane).value_or("damaged"));
        return chunks;
    };
    const auto together = decode({std::string(blob), half});
    if (together[0] != decode({std::string(blob)})[0]) fail("a lane depends on another");
    if (together[1] != decode({half})[0]) fail("a lane depends on another");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Fixture fixture;
    if (size < 4) return 0;
    const std::uint8_t control = data[0];
    const std::size_t chunk_size = 1 + data[1] * 8u;
    const std::size_t primer_size = std::min<std::size_t>(data[2] * 16u, size - 3);
    const std::string_view rest(reinterpret_cast<const char*>(data) + 3, size - 3);
    lmfs::Mixer start = *fixture.start;
    start.prime(rest.substr(0, primer_size), 1 + (control >> 1));
    const std::string_view blob = rest.substr(primer_size);
    const std::size_t strands = control & 1 ? 1 + (control >> 5) : 1;
    if (control & 2) start = start.branch(strands);
    if (control & 1) {
        through_lanes(fixture, start, blob, chunk_size, strands);
    } else {
        through_mixer(start, blob, chunk_size);
    }
    return 0;
}
