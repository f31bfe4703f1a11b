// Where a text goes on in a mixer: the contexts of its next token, and what it repeats.
//
// Both look at what stands before in a memory (mixer_memory.hpp); FORMAT.md, "Mixer", specifies them.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "mixer_memory.hpp"
#include "mixer_profile.hpp"
#include "mixer_text.hpp"

namespace lmfs::mixing {

// An earlier place at which the text stood as it stands now.
struct Match {
    static constexpr std::uint32_t kLongest = 32;  // that is looked for

    std::uint32_t at = 0;  // the number of the token there; 0: none
    std::uint32_t length = 0;
    std::uint32_t misses = 0;

    int length_class() const {
        if (length < 8) return static_cast<int>(length);
        if (length < 16) return 8 + static_cast<int>(length - 8) / 4;
        if (length < 32) return 10 + static_cast<int>(length - 16) / 8;
        return length < 64 ? 12 : length < 128 ? 13 : length < 256 ? 14 : 15;
    }

    // The text went on with this token and has so many now: goes on with it, or is looked for anew.
    // k: which match of the text's it is
    void follow(std::size_t k, Memory& memory, std::size_t token, std::uint32_t end) {
        const auto needed = static_cast<std::uint32_t>(kMinMatch[k]);
        std::uint32_t h = static_cast<std::uint32_t>(k);
        for (std::uint32_t i = 1; i <= needed; ++i) h = hash(h, memory.token(end - i));
        std::uint32_t& place = memory.place(k, h);
        if (at != 0) {
            if (memory.token(at) == token) {
                ++length;
                if (length >= 16) misses = 0;
            } else {
                length = 0;  // it may go on behind what differs
                ++misses;
            }
            ++at;
        }
        if (length == 0) {
            std::uint32_t found = place, common = common_before(memory, found, end);
            if (common < needed) {
                const std::uint32_t other = memory.place_behind(k, h);
                const std::uint32_t more = common_before(memory, other, end);
                if (more > common) found = other, common = more;
            }
            if (common >= needed || (common > 0 && at == 0)) {
                at = found;
                length = common;
                misses = std::min<std::uint32_t>(misses, 3);
            } else if (misses > 8) {
                *this = Match{};
            }
        }
        place = end;
    }

private:
    // How many tokens before these two are the same.
    static std::uint32_t common_before(const Memory& memory, std::uint32_t one,
                                       std::uint32_t other) {
        std::uint32_t common = 0;
        if (one == 0) return common;
        while (common < kLongest && common + kBefore < std::min(one, other) &&
               memory.token(one - 1 - common) == memory.token(other - 1 - common))
            ++common;
        return common;
    }
};

struct Strand : TextPlace {
    std::size_t end = kBefore;  // the number of the next token
    std::array<Match, kMatches> matches{};
    std::array<std::uint32_t, kContexts> contexts{};
    bool hashed = false;  // the plain contexts are those of the next token

    void hash_contexts(const Memory& memory) {
        const std::uint16_t* before = memory.before(end);
        const auto at = [before](int k) { return std::uint32_t{before[-k]} + 1; };
        const auto number = static_cast<std::uint32_t>(fields.size() - 1);
        const std::uint32_t above = this->above();
        std::uint32_t h = 0;
        contexts[0] = 0;
        for (int k = 1; k <= 4; ++k) contexts[static_cast<std::size_t>(k)] = h = hash(h, at(k));
        contexts[5] = hash(hash(h, at(5)), at(6));
        contexts[6] = hash(hash(shapes_before[0], shapes_before[1]), field_shape);
        contexts[7] = hash(word, word_before);
        contexts[8] = hash(above, at(1));
        contexts[9] = hash(above & 0xFFFFFF, hash(number, field));
        contexts[10] = hash(hash(field, number), first_field);
        contexts[11] = hash(line_shape, 1);
        tell_apart(0, kPlainContexts);
        hashed = true;
    }

    // The others, behind a wrong guess (its token plus 1) or none (0).
    void hash_contexts_after(const Memory& memory, std::uint32_t guessed) {
        const std::uint16_t* before = memory.before(end);
        const auto at = [before](int k) { return std::uint32_t{before[-k]} + 1; };
        const auto number = static_cast<std::uint32_t>(fields.size() - 1);
        contexts[12] = hash(guessed, at(1));
        contexts[13] = hash(hash(guessed, number), field);
        contexts[14] = hash(guessed, line_shape);
        contexts[15] = hash(hash(guessed, at(1)), at(2));
        contexts[16] = hash(guessed, first_field);
        contexts[17] = hash(guessed, hash(word, word_before));
        contexts[18] = hash(hash(guessed, number), first_field);
        contexts[19] = hash(hash(shapes_before[0], field_shape), number);
        contexts[20] = hash(guessed, 1);
        contexts[21] = hash(hash(guessed, at(2)), at(3));
        contexts[22] = hash(at(1), at(3));
        contexts[23] = hash(at(2), at(3));
        tell_apart(kPlainContexts, kContexts);
    }

    // What the slot of a context is found by; node: of the path, the bits so far behind a 1.
    std::uint32_t slot_hash(std::size_t context, std::size_t node) const {
        return hash(contexts[context], static_cast<std::uint32_t>(node) * 0x2545F491u);
    }

    // What the k-th run is found by.
    std::uint32_t run_hash(std::size_t k) const {
        return hash(contexts[static_cast<std::size_t>(kRunContext[k])], 77);
    }

    // The text goes on with this token.
    void take(Memory& memory, std::size_t token, std::string_view spelling) {
        if (end == memory.end()) memory.end_at(end + 1);
        memory.put(end++, static_cast<std::uint16_t>(token));
        for (const char c : spelling) TextPlace::take(static_cast<std::uint8_t>(c));
        for (std::size_t k = 0; k < kMatches; ++k)
            matches[k].follow(k, memory, token, static_cast<std::uint32_t>(end));
        hashed = false;
    }

private:
    void tell_apart(std::uint32_t from, std::uint32_t to) {
        for (std::uint32_t k = from; k < to; ++k) contexts[k] = hash(contexts[k], 0x9E37 * (k + 1));
    }
};

}  // namespace lmfs::mixing
