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
// No intermediate value passes 2^62.
//
// Cost: nearly all of a token's is one look-up for every entry of the vocabulary. Hence the table is
// kept reversed and padded to every distance that two 16-bit logits can have, so that a logit itself
// is the index, with no distance to compute, clamp or store; and of the V + 1 sums, of which a path
// asks for some log2(V), only those at multiples of kBlock are stored.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#include "range_coder.hpp"

namespace lmfs {

inline constexpr std::uint32_t kMaxFrequency = std::uint32_t{1} << 24;

// The profile's table, checked: frequency by distance below the largest logit, in 1/64 nat.
class FrequencyTable {
public:
    FrequencyTable(const std::uint32_t* values, std::size_t size) {
        if (size == 0 || size > kDistances)
            throw std::invalid_argument("frequency table: expected 1 to 65536 entries");
        if (values[0] > kMaxFrequency)
            throw std::invalid_argument("frequency table: the first entry is above 2^24");
        if (!std::is_sorted(values, values + size, std::greater<>()))
            throw std::invalid_argument("frequency table: an entry is above the one before it");
        if (values[size - 1] == 0)
            throw std::invalid_argument("frequency table: an entry is 0");
        by_nearness_.assign(kDistances, values[size - 1]);
        std::copy(values, values + size, by_nearness_.rbegin());
    }

    // A logit as an index, in its order: 0 .. 65535.
    static std::uint16_t rank(std::int16_t logit) {
        return static_cast<std::uint16_t>(static_cast<std::uint16_t>(logit) ^ kSign);
    }

    // Frequencies by rank, for the ranks up to that of the largest logit; all are in the table.
    const std::uint32_t* up_to(std::int16_t largest) const {
        return by_nearness_.data() + (kDistances - 1 - rank(largest));
    }

    static constexpr std::uint16_t kSign = 0x8000;

private:
    static constexpr std::size_t kDistances = 65536;

    std::vector<std::uint32_t> by_nearness_;  // [kDistances - 1 - distance]
};

// The cumulative frequencies of one step. Holds scratch space: one object a thread.
class Cumulative {
public:
    Cumulative(const FrequencyTable& table, std::size_t vocabulary)
        : table_(table), vocabulary_(vocabulary), blocks_(vocabulary / kBlock + 1) {}

    // logits: `vocabulary` values, any offset; they must stay in place while sums are asked for.
    void load(const std::int16_t* logits) {
        std::int16_t largest = logits[0];
        for (std::size_t i = 1; i < vocabulary_; ++i) largest = std::max(largest, logits[i]);
        logits_ = logits;
        by_rank_ = table_.up_to(largest);

        // A block's sum is at most 16 * 2^24. Two sums, so that an addition need not wait for the
        // one before; four logits a load, since loads are what the loop is short of.
        std::uint64_t sum = 0;
        for (std::size_t block = 0; block + 1 < blocks_.size(); ++block) {
            std::uint32_t even = 0, odd = 0;
            for (std::size_t i = 0; i < kBlock; i += 4) {
                std::uint64_t four;
                std::memcpy(&four, logits + block * kBlock + i, sizeof four);
                four ^= FrequencyTable::kSign * 0x0001'0001'0001'0001u;  // four ranks
                even += by_rank_[four & 0xFFFF];
                odd += by_rank_[four >> 16 & 0xFFFF];
                even += by_rank_[four >> 32 & 0xFFFF];
                odd += by_rank_[four >> 48];
            }
            sum += even + odd;
            blocks_[block + 1] = sum;
        }
    }

    std::uint64_t operator[](std::size_t index) const {
        std::uint32_t rest = 0;
        for (std::size_t i = index / kBlock * kBlock; i < index; ++i)
            rest += by_rank_[FrequencyTable::rank(logits_[i])];
        return blocks_[index / kBlock] + rest;
    }

    std::size_t vocabulary() const { return vocabulary_; }

private:
    static constexpr std::size_t kBlock = 16;

    const FrequencyTable& table_;
    std::size_t vocabulary_;
    std::vector<std::uint64_t> blocks_;  // [i]: the sum before index i * kBlock
    const std::int16_t* logits_ = nullptr;
    const std::uint32_t* by_rank_ = nullptr;
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
