// What a mixer is made of and starts from: its sizes, its tables, and a coder profile's data.
//
// All tables, and the adaptive state that every mixer starts from, are the coder profile's
// (lmfs/profile.py), laid out as FORMAT.md ("Mixer") says; here they are checked.

#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "range_coder.hpp"

namespace lmfs {

namespace mixing {

inline constexpr int kPlainContexts = 12;  // those that do not know of a guess
inline constexpr int kContexts = 24;
inline constexpr int kRuns = 10;
inline constexpr int kRunsOfNodes = 5;  // so many of them are inputs at nodes
inline constexpr int kMatches = 2;
inline constexpr int kVotes = kMatches + kRuns;
// At nodes: stretched and linear of each context, matches, runs, model; a multiple of 8.
inline constexpr int kInputs = 56;
inline constexpr int kFirstMatch = 2 * kContexts;
inline constexpr int kFirstRun = kFirstMatch + kMatches;
inline constexpr int kModelInput = kFirstRun + kRunsOfNodes;
static_assert(kModelInput + 1 == kInputs);
// Of a guess: votes, a constant, model; a multiple of 8.
inline constexpr int kGuessInputs = 16;
inline constexpr int kConstantInput = kVotes;
inline constexpr int kGuessModelInput = kVotes + 1;
inline constexpr int kConstant = 256;
inline constexpr std::uint32_t kGuessFrom = 1 << 14;  // of a vote's p16
inline constexpr int kRunBitsOfSet = 8;  // runs whose agreement chooses a weight set

inline constexpr int kSets = 3;
inline constexpr int kLevelsOfSlot = 3;
inline constexpr int kGroups = 4;  // slots of a path that are told apart
inline constexpr int kMaxStretch = 2047;
inline constexpr int kWeightBits = 13;
inline constexpr int kKnots = 33;
inline constexpr std::array<int, kMatches> kMinMatch{5, 2};
// The contexts that have runs.
inline constexpr std::array<int, kRuns> kRunContext{1, 2, 4, 8, 9, 3, 5, 10, 11, 7};
inline constexpr int kMapLimit = 255;

// A probability of 22 bits and, below it, a count of 10: it moves by 1 / (count + 1.5).
using Counter = std::uint32_t;

// Learned before and shipped with the profile; every lane has its own copy and goes on learning.
// Plain memory: the profile stores it as little-endian integers in this order.
struct Adaptive {
    Counter history[kContexts][kGroups][256];
    Counter match[kMatches][16][8];
    Counter run[kRunsOfNodes][2][256];
    Counter vote_match[kMatches][16][8];  // of votes being right
    Counter vote_run[kRuns][256];
    Counter guess_match[kMatches][2][16][8];  // of guesses, by whether the vote agrees
    Counter guess_run[kRuns][2][256];
    std::int16_t by_vote[2][kVotes][16][kGuessInputs];
    std::int16_t by_count[2][12][12][kGuessInputs];
    std::int16_t by_voters[2][2][1 << kRunBitsOfSet][kGuessInputs];
    std::uint16_t by_guess[1024][kKnots];
    std::uint16_t by_against[kVotes][16][kKnots];
    std::int16_t by_match[2][16][4][2][kInputs];
    std::int16_t by_order[2][6][8][4][kInputs];
    std::int16_t by_level[16][kContexts + 1][2][kInputs];
    std::int16_t final[2][16][4][4];  // the fourth of four is not used
    std::uint16_t by_node[2048][kKnots];
    std::uint16_t by_expected[16][2][16][kKnots];
    std::uint16_t by_token[1024][kKnots];
};

// Powers of two of what is remembered of texts; the profile's description says them.
struct Sizes {
    int slots;   // of all contexts together
    int runs;    // of one context
    int places;  // of one match
};

// Never learned.
struct Tables {
    std::int16_t stretch[4096 + 2 * 4096];  // by p / 16; by p below 4096; by 65535 - p likewise
    std::uint32_t squash[4096];             // 22 bits, by stretched + 2048
    std::uint16_t reciprocal[1024];         // 65536 / (count + 1.5)
    std::uint8_t next[2][256];              // bit history after a bit
    std::uint8_t seen[256];                 // how much a history has seen: what is kept longest
};

#if defined(__GNUC__)
inline void prefetch(const void* address) { __builtin_prefetch(address, 1); }
inline void prefetch_to_read(const void* address) { __builtin_prefetch(address); }
#else
inline void prefetch(const void*) {}
inline void prefetch_to_read(const void*) {}
#endif

// For large tables that are read at random: they begin at a cache line. Where they are long enough,
// they have pages of 2 MiB, if the system has such, and go back to it as soon as they are not needed.
template <class T>
struct HugePages {
    using value_type = T;
    static constexpr std::size_t kPage = std::size_t{2} << 20;
    static constexpr std::size_t kLine = 64;

    T* allocate(std::size_t count) {
#if defined(__linux__)
        if (is_large(count)) return static_cast<T*>(map(whole(count, kPage)));
#endif
        void* at = std::aligned_alloc(kLine, whole(count, kLine));
        if (!at) throw std::bad_alloc();
        return static_cast<T*>(at);
    }
    void deallocate(T* at, std::size_t count) {
#if defined(__linux__)
        if (is_large(count)) {
            munmap(at, whole(count, kPage));
            return;
        }
#endif
        std::free(at);
    }
    bool operator==(const HugePages&) const { return true; }

private:
    static bool is_large(std::size_t count) { return count * sizeof(T) >= 2 * kPage; }
    static std::size_t whole(std::size_t count, std::size_t unit) {
        return (count * sizeof(T) + unit - 1) / unit * unit;
    }

#if defined(__linux__)
    static void* map(std::size_t bytes) {
        void* room = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) throw std::bad_alloc();
        char* begin = static_cast<char*>(room);
        const std::size_t before = (kPage - reinterpret_cast<std::uintptr_t>(begin) % kPage) % kPage;
        if (before > 0) munmap(begin, before);
        if (before < kPage) munmap(begin + before + bytes, kPage - before);
        madvise(begin + before, bytes, MADV_HUGEPAGE);
        return begin + before;
    }
#endif
};

}  // namespace mixing

class MixerProfile {
public:
    static constexpr std::size_t kBytes = sizeof(mixing::Tables) + sizeof(mixing::Adaptive);

    // sizes: of a state's memory
    // lane: of that which each strand of a chunk adds in front; nothing: chunks change their copies
    MixerProfile(std::string_view bytes, mixing::Sizes sizes, std::optional<mixing::Sizes> lane)
        : sizes(sizes), lane(lane) {
        if (bytes.size() != kBytes)
            throw std::invalid_argument("mixer profile: expected " + std::to_string(kBytes) +
                                        " bytes, got " + std::to_string(bytes.size()));
        std::memcpy(&tables, bytes.data(), sizeof tables);
        std::memcpy(&initial, bytes.data() + sizeof tables, sizeof initial);
        check();
    }

    mixing::Tables tables;
    mixing::Adaptive initial;
    mixing::Sizes sizes;
    std::optional<mixing::Sizes> lane;

    // Of a chunk's own memory; only where lanes have such.
    mixing::Sizes lane_sizes(std::size_t strands) const {
        const int more = std::bit_width(strands - 1);  // enough for all of them
        const auto with = [more](int bits) { return std::min(bits + more, kMaxBits); };
        return {with(lane->slots), with(lane->runs), with(lane->places)};
    }

private:
    static constexpr int kMaxBits = 24;

    // What the loops rely on instead of looking.
    void check() const {
        for (const mixing::Sizes& each : {sizes, lane.value_or(sizes)})
            for (const int bits : {each.slots, each.runs, each.places})
                if (bits < 2 || bits > kMaxBits)
                    throw std::invalid_argument("mixer profile: sizes are 2 to 24 bits");
        for (const auto& context : initial.history)
            for (const auto& group : context)
                if (group[0] >> 16 != 32768)
                    throw std::invalid_argument("mixer profile: history 0 says something");
        if (tables.stretch[2048] != 0)
            throw std::invalid_argument("mixer profile: one half is not stretched to 0");
        const auto [least, most] = std::minmax_element(std::begin(tables.stretch),
                                                       std::end(tables.stretch));
        if (*least < -mixing::kMaxStretch || *most > mixing::kMaxStretch)
            throw std::invalid_argument("mixer profile: a stretched probability is too large");
        for (const std::uint32_t p : tables.squash)
            if (p >= kProbabilityOne)
                throw std::invalid_argument("mixer profile: a probability is too large");
    }
};

}  // namespace lmfs
