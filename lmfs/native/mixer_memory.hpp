// What a mixer remembers of texts: slots of bit histories, runs, places and tokens.
//
// The memory of a chunk that follows a state is small and *in front of* that state's, which all such
// chunks share: what is not found in it is looked for behind, and from then on changed in front.
// FORMAT.md ("Mixer") specifies what is found.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "mixer_profile.hpp"

namespace lmfs::mixing {

struct Slot {
    std::uint8_t check = 0;
    std::array<std::uint8_t, 7> history{};
};

struct Run {
    std::uint8_t check = 0;
    std::uint8_t history = 0;  // of whether a token was the one before; 0: there was none
    std::uint16_t token = 0;
};

inline constexpr std::size_t kBefore = 8;  // tokens 0 before the first, so that there always are some

class Memory {
public:
    explicit Memory(Sizes sizes) : Memory(sizes, nullptr) {}

    // Empty, in front of another, which nobody may change any more; nullptr: of none.
    Memory(Sizes sizes, std::shared_ptr<const Memory> behind)
        : sizes_(sizes),
          behind_(std::move(behind)),
          slots_(std::size_t{1} << sizes.slots),
          runs_(std::size_t{kRuns} << sizes.runs) {
        for (auto& places : places_) places.resize(std::size_t{1} << sizes.places);
        tokens_.resize(kBefore);
        if (!behind_) return;
        own_from_ = behind_->end();
        first_ = own_from_ - kBefore;
        std::copy(behind_->tokens_.end() - kBefore, behind_->tokens_.end(), tokens_.begin());
    }

    bool is_empty() const { return end() == kBefore; }

    // The slot of a context at a place of the path: found among three neighbours, or the least used
    // of them, with what is known behind or emptied. seen: how much a history has seen
    Slot& slot(std::uint32_t hashed, const std::uint8_t* seen) {
        const std::uint8_t check = check_of(hashed);
        const std::size_t at = hashed >> (32 - sizes_.slots);
        Slot* best = nullptr;
        for (const std::size_t other : {0, 1, 2}) {
            Slot& candidate = slots_[at ^ other];
            if (candidate.check == check) return candidate;
            if (!best || seen[candidate.history[0]] < seen[best->history[0]]) best = &candidate;
        }
        const Slot* known = behind_ ? behind_->find_slot(hashed, check) : nullptr;
        *best = known ? *known : Slot{check, {}};
        return *best;
    }

    // The run of the k-th context that has such.
    Run& run(std::size_t k, std::uint32_t hashed) {
        const auto check = static_cast<std::uint8_t>(hashed);
        Run& run = runs_[run_at(k, hashed)];
        if (run.check == check && run.history != 0) return run;
        run = Run{check, 0, 0};
        if (behind_) {
            const Run& known = behind_->runs_[behind_->run_at(k, hashed)];
            if (known.check == check) run = known;
        }
        return run;
    }

    // Where the tokens of this hash were last; 0: nowhere. To be looked up first here, then behind.
    std::uint32_t& place(std::size_t k, std::uint32_t hashed) {
        return places_[k][hashed >> (32 - sizes_.places)];
    }
    std::uint32_t place_behind(std::size_t k, std::uint32_t hashed) const {
        return behind_ ? behind_->places_[k][hashed >> (32 - behind_->sizes_.places)] : 0;
    }

    // Tokens have numbers, those behind the lowest ones.
    std::uint16_t token(std::size_t number) const {
        return number < own_from_ ? behind_->tokens_[number] : tokens_[number - first_];
    }
    // Of a text that goes on with that number: [-1] is the last one, [-8] exists.
    const std::uint16_t* before(std::size_t number) const { return tokens_.data() + (number - first_); }
    std::size_t end() const { return first_ + tokens_.size(); }
    // Tokens 0 that were not there, or none that were.
    void end_at(std::size_t number) { tokens_.resize(number - first_, 0); }
    void put(std::size_t number, std::uint16_t token) { tokens_[number - first_] = token; }

    // Have what a hash finds come nearer.
    void foresee_slot(std::uint32_t hashed) const {
        prefetch(&slots_[hashed >> (32 - sizes_.slots)]);
        if (behind_) prefetch_to_read(&behind_->slots_[hashed >> (32 - behind_->sizes_.slots)]);
    }
    void foresee_run(std::size_t k, std::uint32_t hashed) const {
        prefetch(&runs_[run_at(k, hashed)]);
        if (behind_) prefetch_to_read(&behind_->runs_[behind_->run_at(k, hashed)]);
    }

    // Without what is behind.
    std::size_t used_bytes() const {
        std::size_t bytes = sizeof *this + slots_.size() * sizeof(Slot) + runs_.size() * sizeof(Run);
        for (const auto& places : places_) bytes += places.size() * sizeof places[0];
        return bytes + tokens_.size() * sizeof tokens_[0];
    }

private:
    static std::uint8_t check_of(std::uint32_t hashed) {
        return static_cast<std::uint8_t>(std::max(hashed & 255u, 1u));
    }

    const Slot* find_slot(std::uint32_t hashed, std::uint8_t check) const {
        const std::size_t at = hashed >> (32 - sizes_.slots);
        for (const std::size_t other : {0, 1, 2})
            if (slots_[at ^ other].check == check) return &slots_[at ^ other];
        return nullptr;
    }

    std::size_t run_at(std::size_t k, std::uint32_t hashed) const {
        return (k << sizes_.runs) + (hashed >> (32 - sizes_.runs));
    }

    Sizes sizes_;
    std::shared_ptr<const Memory> behind_;
    std::vector<Slot, HugePages<Slot>> slots_;
    std::vector<Run, HugePages<Run>> runs_;
    std::array<std::vector<std::uint32_t>, kMatches> places_;  // numbers of tokens; 0: none
    std::vector<std::uint16_t> tokens_;                        // of all strands
    std::size_t first_ = 0;     // the number of the first of them
    std::size_t own_from_ = 0;  // lower numbers are those of tokens behind
};

}  // namespace lmfs::mixing
