// From one step's integer logits to the probabilities along a token's path. Integers only.
//
// frequency[t]  = table[min(max_logit - logit[t], last)]        1 .. 2^24
// cumulative[i] = frequency[0] + ... + frequency[i - 1]         up to 2^40
//
// The vocabulary is sorted by the bytes of its tokens. A token is the path to its leaf in the tree
// whose node [low, high) splits at middle = (low + high) / 2; bit 1 is the right half, and
//
// P(1) = clamp(((cumulative[high] - cumulative[middle]) << 22)
//              / (cumulative[high] - cumulative[low]), 1, 2^22 - 1)
//
// No intermediate value passes 2^62. A path asks for some log2(V) cumulative sums out of V + 1, so
// only the sums at multiples of kBlock are stored and the rest of each is added when asked for.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "range_coder.hpp"

namespace lmfs {

inline constexpr std::size_t kMaxVocabulary = 65536;
inline constexpr std::uint32_t kMaxFrequency = std::uint32_t{1} << 24;

// The profile's table, checked: frequency by distance below the largest logit, in 1/64 nat.
class FrequencyTable {
public:
    FrequencyTable(const std::uint32_t* values, std::size_t size) : values_(values, values + size) {
        if (size == 0 || size > 65536)
            throw std::invalid_argument("frequency table: expected 1 to 65536 entries");
        if (values_.front() > kMaxFrequency)
            throw std::invalid_argument("frequency table: the first entry is above 2^24");
        if (!std::is_sorted(values_.rbegin(), values_.rend()))
            throw std::invalid_argument("frequency table: an entry is above the one before it");
        if (values_.back() == 0) throw std::invalid_argument("frequency table: an entry is 0");
    }

    const std::uint32_t* data() const { return values_.data(); }
    std::uint16_t last() const { return static_cast<std::uint16_t>(values_.size() - 1); }

private:
    std::vector<std::uint32_t> values_;
};

// The cumulative frequencies of one step. Holds scratch space: one object a thread.
class Cumulative {
public:
    Cumulative(const FrequencyTable& table, std::size_t vocabulary)
        : table_(table),
          vocabulary_(vocabulary),
          distances_((vocabulary + kBlock - 1) / kBlock * kBlock),
          blocks_(distances_.size() / kBlock + 1) {}

    // logits: `vocabulary` values, any offset.
    void load(const std::int16_t* logits) {
        std::int16_t largest = logits[0];
        for (std::size_t i = 1; i < vocabulary_; ++i) largest = std::max(largest, logits[i]);

        // The true distance is 0 .. 65535, so that it survives 16-bit wrap-around.
        const auto top = static_cast<std::uint16_t>(largest);
        const std::uint16_t last = table_.last();
        std::uint16_t* distances = distances_.data();
        for (std::size_t i = 0; i < vocabulary_; ++i) {
            const auto distance =
                static_cast<std::uint16_t>(top - static_cast<std::uint16_t>(logits[i]));
            distances[i] = std::min(distance, last);
        }

        // Distances after the vocabulary's end stay 0: no sum that is asked for includes them.
        const std::uint32_t* table = table_.data();
        std::uint64_t sum = 0;
        for (std::size_t block = 0; block + 1 < blocks_.size(); ++block) {
            std::uint32_t part = 0;  // at most 16 * 2^24
            for (std::size_t i = 0; i < kBlock; ++i) part += table[distances[block * kBlock + i]];
            sum += part;
            blocks_[block + 1] = sum;
        }
    }

    std::uint64_t operator[](std::size_t index) const {
        const std::size_t start = index / kBlock * kBlock;
        std::uint32_t rest = 0;
        for (std::size_t i = start; i < index; ++i) rest += table_.data()[distances_[i]];
        return blocks_[index / kBlock] + rest;
    }

    std::size_t vocabulary() const { return vocabulary_; }

private:
    static constexpr std::size_t kBlock = 16;

    const FrequencyTable& table_;
    std::size_t vocabulary_;
    std::vector<std::uint16_t> distances_;
    std::vector<std::uint64_t> blocks_;
};

// Walks from the root to a leaf; `decide(p1)` gives the bit taken at each node. Returns the token.
template <typename Decide>
std::size_t walk(const Cumulative& cumulative, Decide&& decide) {
    std::size_t low = 0, high = cumulative.vocabulary();
    std::uint64_t at_low = 0, at_high = cumulative[high];
    while (high - low > 1) {
        const std::size_t middle = (low + high) / 2;
        const std::uint64_t at_middle = cumulative[middle];
        const std::uint64_t ratio = ((at_high - at_middle) << kProbabilityBits) / (at_high - at_low);
        const auto p1 = static_cast<std::uint32_t>(
            std::clamp<std::uint64_t>(ratio, 1, kProbabilityOne - 1));
        if (decide(middle, p1)) {
            low = middle;
            at_low = at_middle;
        } else {
            high = middle;
            at_high = at_middle;
        }
    }
    return low;
}

}  // namespace lmfs
