// Tokens to a chunk's blob and back, given the logits of every step.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "frequencies.hpp"
#include "range_coder.hpp"
#include "vocabulary.hpp"

namespace lmfs {

// Rows of logits in somebody else's memory; `stride` is in elements and may be any number.
struct LogitRows {
    const std::int16_t* data;
    std::ptrdiff_t stride;

    const std::int16_t* operator[](std::size_t row) const {
        return data + static_cast<std::ptrdiff_t>(row) * stride;
    }
};

// One chunk.
class TokenEncoder {
public:
    TokenEncoder(std::shared_ptr<const Vocabulary> vocabulary, FrequencyTable table)
        : vocabulary_(std::move(vocabulary)),
          table_(std::move(table)),
          cumulative_(table_, vocabulary_->size()) {}

    TokenEncoder(const TokenEncoder&) = delete;
    TokenEncoder& operator=(const TokenEncoder&) = delete;

    // Nothing is coded if any of the tokens is not in the vocabulary.
    void push(LogitRows logits, const std::uint16_t* tokens, std::size_t time) {
        if (finished_) throw std::invalid_argument("encoder: push after finish");
        for (std::size_t i = 0; i < time; ++i)
            if (tokens[i] >= vocabulary_->size())
                throw std::invalid_argument("encoder: token " + std::to_string(tokens[i]) +
                                            " is not in the vocabulary");
        for (std::size_t i = 0; i < time; ++i) {
            cumulative_.load(logits[i]);
            // At most 16 nodes of at least 2^-22 each: far from a double's smallest value.
            double probability = 1.0;
            walk(cumulative_, [&](std::size_t middle, std::uint32_t p1) {
                const bool bit = tokens[i] >= middle;
                coder_.encode(bit, p1);
                probability *= bit ? p1 : kProbabilityOne - p1;
                probability /= kProbabilityOne;
                return bit;
            });
            ideal_bits_ -= std::log2(probability);
        }
    }

    std::vector<std::uint8_t> finish() {
        if (finished_) throw std::invalid_argument("encoder: finish after finish");
        finished_ = true;
        return coder_.finish();
    }

    double ideal_bits() const { return ideal_bits_; }
    const Vocabulary& vocabulary() const { return *vocabulary_; }

private:
    std::shared_ptr<const Vocabulary> vocabulary_;
    FrequencyTable table_;
    Cumulative cumulative_;
    RangeEncoder coder_;
    double ideal_bits_ = 0.0;  // measurement only: decides no coded bit
    bool finished_ = false;
};

// Many chunks in lockstep. A damaged lane ends; it never disturbs another.
class TokenDecoder {
public:
    TokenDecoder(std::shared_ptr<const Vocabulary> vocabulary, FrequencyTable table,
                 std::vector<std::string> blobs, const std::vector<std::size_t>& sizes)
        : vocabulary_(std::move(vocabulary)),
          table_(std::move(table)),
          cumulative_(table_, vocabulary_->size()),
          blobs_(std::move(blobs)) {
        if (blobs_.size() != sizes.size())
            throw std::invalid_argument("decoder: as many sizes as blobs are needed");
        lanes_.reserve(blobs_.size());
        for (std::size_t i = 0; i < blobs_.size(); ++i) {
            const auto* blob = reinterpret_cast<const std::uint8_t*>(blobs_[i].data());
            lanes_.emplace_back(RangeDecoder(blob, blobs_[i].size()), sizes[i]);
            if (!ended(lanes_.back())) active_.push_back(static_cast<std::int64_t>(i));
        }
    }

    TokenDecoder(const TokenDecoder&) = delete;
    TokenDecoder& operator=(const TokenDecoder&) = delete;

    const std::vector<std::int64_t>& active() const { return active_; }

    // One row of logits for every active lane, in their order; the tokens likewise.
    std::vector<std::int64_t> step(LogitRows logits) {
        std::vector<std::int64_t> tokens;
        tokens.reserve(active_.size());
        std::size_t kept = 0;
        for (std::size_t row = 0; row < active_.size(); ++row) {
            const std::int64_t number = active_[row];
            Lane& lane = lanes_[static_cast<std::size_t>(number)];
            cumulative_.load(logits[row]);
            const std::size_t token = walk(cumulative_, [&](std::size_t, std::uint32_t p1) {
                return lane.coder.decode(p1);
            });
            tokens.push_back(static_cast<std::int64_t>(token));
            const std::string_view spelling = vocabulary_->spelling(token);
            if (spelling.size() > lane.size - lane.chunk.size()) {
                lane.damaged = true;
            } else {
                lane.chunk.append(spelling);
            }
            if (!ended(lane)) active_[kept++] = number;
        }
        active_.resize(kept);
        return tokens;
    }

    std::size_t lanes() const { return lanes_.size(); }

    // The chunk, or nothing where the blob cannot be that of a chunk of this size.
    std::optional<std::string_view> chunk(std::size_t lane) const {
        if (lanes_[lane].damaged) return std::nullopt;
        return lanes_[lane].chunk;
    }

    const Vocabulary& vocabulary() const { return *vocabulary_; }

private:
    struct Lane {
        Lane(RangeDecoder decoder, std::size_t chunk_size) : coder(decoder), size(chunk_size) {}

        RangeDecoder coder;
        std::size_t size;
        std::string chunk;
        bool damaged = false;
    };

    static bool ended(Lane& lane) {
        if (lane.chunk.size() == lane.size) {
            lane.damaged = lane.damaged || !lane.coder.ends_here();
        } else {
            lane.damaged = lane.damaged || lane.coder.damaged();
        }
        return lane.damaged || lane.chunk.size() == lane.size;
    }

    std::shared_ptr<const Vocabulary> vocabulary_;
    FrequencyTable table_;
    Cumulative cumulative_;
    std::vector<std::string> blobs_;  // the lanes' decoders point into them
    std::vector<Lane> lanes_;
    std::vector<std::int64_t> active_;
};

}  // namespace lmfs
