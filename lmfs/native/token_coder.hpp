// Tokens to a chunk's blob and back: with the logits of every step, with a mixer, or with both.

#pragma once

#include <algorithm>
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
#include "mixer.hpp"
#include "range_coder.hpp"
#include "vocabulary.hpp"

namespace lmfs {

// Rows of logits in somebody else's memory; strides are in elements and may be any number. The rows
// of some strands are counted in turns.
struct LogitRows {
    const std::int16_t* data;
    std::ptrdiff_t stride;
    std::size_t strands = 1;
    std::ptrdiff_t strand_stride = 0;

    const std::int16_t* operator[](std::size_t row) const {
        return data + static_cast<std::ptrdiff_t>(row / strands) * stride +
               static_cast<std::ptrdiff_t>(row % strands) * strand_stride;
    }
};

// Its tokens would be looked up among logits that are not there.
inline void check_vocabulary(const Mixer& mixer, const Vocabulary& vocabulary) {
    if (!(mixer.vocabulary() == vocabulary))
        throw std::invalid_argument("a mixer of another vocabulary");
}

// One chunk.
class TokenEncoder {
public:
    // strands: that the tokens are pushed of, in turns (FORMAT.md, "Strands"); tokens: at most so many
    TokenEncoder(std::shared_ptr<const Vocabulary> vocabulary, FrequencyTable table,
                 std::optional<Mixer> mixer, std::size_t strands, std::size_t tokens)
        : vocabulary_(std::move(vocabulary)),
          table_(std::move(table)),
          cumulative_(table_, vocabulary_->size()),
          mixer_(std::move(mixer)),
          strands_(strands) {
        if (strands_ == 0) throw std::invalid_argument("a chunk of no strands");
        if (!mixer_) return;
        check_vocabulary(*mixer_, *vocabulary_);
        mixer_->split(strands_, tokens);
    }

    TokenEncoder(const TokenEncoder&) = delete;
    TokenEncoder& operator=(const TokenEncoder&) = delete;

    // In the order of coding: the first token of each strand, then the second of each, ...
    // Nothing is coded if any of the tokens is not in the vocabulary.
    void push(LogitRows logits, const std::uint16_t* tokens, std::size_t time) {
        if (finished_) throw std::invalid_argument("encoder: push after finish");
        for (std::size_t i = 0; i < time; ++i)
            if (tokens[i] >= vocabulary_->size())
                throw std::invalid_argument("encoder: token " + std::to_string(tokens[i]) +
                                            " is not in the vocabulary");
        for (std::size_t i = 0; i < time; ++i) {
            cumulative_.load(logits[i]);
            // At most 17 decisions of at least 2^-22 each: far from a double's smallest value.
            double probability = 1.0;
            const auto encode = [&](std::size_t other, std::uint32_t p1, bool guess = false) {
                const bool bit = guess ? tokens[i] == other : tokens[i] >= other;
                coder_.encode(bit, p1);
                probability *= bit ? p1 : kProbabilityOne - p1;
                probability /= kProbabilityOne;
                return bit;
            };
            if (mixer_) {
                mixer_->token(&cumulative_, encode);
            } else {
                walk(cumulative_, encode);
            }
            ideal_bits_ -= std::log2(probability);
        }
    }

    std::vector<std::uint8_t> finish() {
        if (finished_) throw std::invalid_argument("encoder: finish after finish");
        finished_ = true;
        if (mixer_) mixer_->join();
        return coder_.finish();
    }

    double ideal_bits() const { return ideal_bits_; }
    std::size_t strands() const { return strands_; }
    const Vocabulary& vocabulary() const { return *vocabulary_; }
    const std::optional<Mixer>& mixer() const { return mixer_; }

private:
    std::shared_ptr<const Vocabulary> vocabulary_;
    FrequencyTable table_;
    Cumulative cumulative_;
    std::optional<Mixer> mixer_;
    std::size_t strands_;
    RangeEncoder coder_;
    double ideal_bits_ = 0.0;  // measurement only: decides no coded bit
    bool finished_ = false;
};

// Many chunks in lockstep, each a lane in some strands. A damaged lane ends; it never disturbs
// another.
class TokenDecoder {
public:
    // mixers: one a blob, or none at all.
    TokenDecoder(std::shared_ptr<const Vocabulary> vocabulary, FrequencyTable table,
                 std::vector<std::string> blobs, const std::vector<std::size_t>& sizes,
                 std::vector<Mixer> mixers, std::size_t strands)
        : vocabulary_(std::move(vocabulary)),
          table_(std::move(table)),
          cumulative_(table_, vocabulary_->size()),
          blobs_(std::move(blobs)),
          mixers_(std::move(mixers)),
          strands_(strands) {
        if (strands_ == 0) throw std::invalid_argument("chunks of no strands");
        if (blobs_.size() != sizes.size())
            throw std::invalid_argument("decoder: as many sizes as blobs are needed");
        if (!mixers_.empty() && mixers_.size() != blobs_.size())
            throw std::invalid_argument("decoder: as many mixers as blobs are needed, or none");
        for (const Mixer& mixer : mixers_) check_vocabulary(mixer, *vocabulary_);
        lanes_.reserve(blobs_.size());
        for (std::size_t i = 0; i < blobs_.size(); ++i) {
            const auto* blob = reinterpret_cast<const std::uint8_t*>(blobs_[i].data());
            lanes_.emplace_back(RangeDecoder(blob, blobs_[i].size()), sizes[i], strands_);
            if (!mixers_.empty()) mixers_[i].split(strands_, sizes[i]);
            if (!ended(lanes_.back())) active_.push_back(static_cast<std::int64_t>(i));
        }
    }

    TokenDecoder(const TokenDecoder&) = delete;
    TokenDecoder& operator=(const TokenDecoder&) = delete;

    const std::vector<std::int64_t>& active() const { return active_; }

    // One row of logits for every strand of every active lane, in their order; the tokens likewise.
    // Where a lane ends before its last strand's turn, 0 stands for what there is not.
    std::vector<std::int64_t> step(LogitRows logits) {
        std::vector<std::int64_t> tokens(active_.size() * strands_, 0);
        std::size_t kept = 0;
        for (std::size_t at = 0; at < active_.size(); ++at) {
            const std::int64_t number = active_[at];
            Lane& lane = lanes_[static_cast<std::size_t>(number)];
            Mixer* mixer = mixers_.empty() ? nullptr : &mixers_[static_cast<std::size_t>(number)];
            bool over = false;
            for (std::size_t k = 0; k < strands_ && !over; ++k) {
                const std::size_t row = at * strands_ + k;
                if (mixer && k + 1 < strands_) mixer->foresee(1);
                tokens[row] = static_cast<std::int64_t>(token(lane, mixer, lane.strands[k], logits[row]));
                over = ended(lane);
            }
            if (!over) active_[kept++] = number;
        }
        active_.resize(kept);
        return tokens;
    }

    std::size_t lanes() const { return lanes_.size(); }
    std::size_t strands() const { return strands_; }

    // For when another decoder steps first; of the one lane there is.
    void foresee() {
        if (!mixers_.empty()) mixers_.front().foresee();
    }

    // The state behind a chunk, which is given away; nothing where there is none, or where the tokens
    // are not an encoder's: whoever knows the chunk alone would come to another state.
    std::optional<Mixer> take_mixer(std::size_t lane) {
        Lane& done = lanes_[lane];
        if (mixers_.empty() || done.left > 0 || done.damaged || done.taken) return std::nullopt;
        std::vector<std::uint16_t> whole;
        for (const auto& tokens : done.strands)
            whole.insert(whole.end(), tokens.begin(), tokens.end());
        if (whole != vocabulary_->tokenize(*chunk(lane))) return std::nullopt;
        done.taken = true;
        mixers_[lane].join();
        return std::move(mixers_[lane]);
    }

    // The chunk, or nothing where the blob cannot be that of a chunk of this size.
    std::optional<std::string> chunk(std::size_t lane) const {
        if (lanes_[lane].damaged) return std::nullopt;
        std::string whole;
        for (const auto& tokens : lanes_[lane].strands)
            for (const std::uint16_t token : tokens) whole += vocabulary_->spelling(token);
        return whole;
    }

    const Vocabulary& vocabulary() const { return *vocabulary_; }

private:
    struct Lane {
        Lane(RangeDecoder decoder, std::size_t chunk_size, std::size_t strands)
            : coder(decoder), left(chunk_size), strands(strands) {}

        RangeDecoder coder;
        std::size_t left;  // of the chunk's bytes
        std::vector<std::vector<std::uint16_t>> strands;  // their tokens
        bool damaged = false;
        bool taken = false;  // its mixer
    };

    // The next token of a lane, which goes to the end of this strand.
    std::size_t token(Lane& lane, Mixer* mixer, std::vector<std::uint16_t>& strand,
                      const std::int16_t* logits) {
        cumulative_.load(logits);
        const auto decode = [&](std::size_t, std::uint32_t p1, bool = false) {
            return lane.coder.decode(p1);
        };
        const std::size_t token =
            mixer ? mixer->token(&cumulative_, decode) : walk(cumulative_, decode);
        const std::string_view spelling = vocabulary_->spelling(token);
        if ((mixer && mixer->contradicts()) || spelling.size() > lane.left) {
            lane.damaged = true;
        } else {
            strand.push_back(static_cast<std::uint16_t>(token));
            lane.left -= spelling.size();
        }
        return token;
    }

    static bool ended(Lane& lane) {
        if (lane.left == 0) {
            lane.damaged = lane.damaged || !lane.coder.ends_here();
        } else {
            lane.damaged = lane.damaged || lane.coder.damaged();
        }
        return lane.damaged || lane.left == 0;
    }

    std::shared_ptr<const Vocabulary> vocabulary_;
    FrequencyTable table_;
    Cumulative cumulative_;
    std::vector<std::string> blobs_;  // the lanes' decoders point into them
    std::vector<Mixer> mixers_;
    std::size_t strands_;
    std::vector<Lane> lanes_;
    std::vector<std::int64_t> active_;
};

// One chunk without a model, some tokens at a time: the mixer, which whoever calls lends each time,
// goes on behind it.
class MixEncoder {
public:
    MixEncoder(const Vocabulary& vocabulary, std::string_view chunk)
        : tokens_(vocabulary.tokenize(chunk)) {}

    // Whether there is more to do.
    bool go_on(Mixer& mixer, std::size_t most) {
        const std::size_t end = at_ + std::min(most, tokens_.size() - at_);
        for (; at_ < end; ++at_) {
            const std::size_t token = tokens_[at_];
            mixer.token(nullptr, [&](std::size_t other, std::uint32_t p1, bool guess) {
                const bool bit = guess ? token == other : token >= other;
                coder_.encode(bit, p1);
                return bit;
            });
        }
        return at_ < tokens_.size();
    }

    // To be called once, at the end.
    std::vector<std::uint8_t> finish() { return coder_.finish(); }

private:
    std::vector<std::uint16_t> tokens_;
    RangeEncoder coder_;
    std::size_t at_ = 0;
};

// Likewise, back.
class MixDecoder {
public:
    MixDecoder(std::string blob, std::size_t size)
        : blob_(std::move(blob)),
          coder_(reinterpret_cast<const std::uint8_t*>(blob_.data()), blob_.size()),
          size_(size) {}

    MixDecoder(const MixDecoder&) = delete;
    MixDecoder& operator=(const MixDecoder&) = delete;

    // Whether there is more to do.
    bool go_on(Mixer& mixer, std::size_t most) {
        for (; most > 0 && !damaged_ && chunk_.size() < size_; --most) {
            if (coder_.damaged()) {
                damaged_ = true;
                break;
            }
            const std::size_t token = mixer.token(
                nullptr, [&](std::size_t, std::uint32_t p1, bool) { return coder_.decode(p1); });
            const std::string_view spelling = mixer.vocabulary().spelling(token);
            if (mixer.contradicts() || spelling.size() > size_ - chunk_.size()) {
                damaged_ = true;
                break;
            }
            chunk_.append(spelling);
            tokens_.push_back(static_cast<std::uint16_t>(token));
        }
        if (!damaged_ && chunk_.size() < size_) return true;
        // A mixer primed with the chunk's bytes must be this one: hence only one way to spell them.
        if (!damaged_ && !(coder_.ends_here() && mixer.vocabulary().tokenize(chunk_) == tokens_))
            damaged_ = true;
        ended_ = true;
        return false;
    }

    // The chunk, or nothing where it has not come to its end, or the blob is not the one that
    // MixEncoder makes of it.
    std::optional<std::string_view> chunk() const {
        if (!ended_ || damaged_) return std::nullopt;
        return chunk_;
    }

private:
    std::string blob_;  // the coder points into it
    RangeDecoder coder_;
    std::size_t size_;
    std::string chunk_;
    std::vector<std::uint16_t> tokens_;
    bool damaged_ = false;
    bool ended_ = false;
};

inline std::vector<std::uint8_t> encode_with(Mixer& mixer, std::string_view chunk) {
    MixEncoder encoder(mixer.vocabulary(), chunk);
    encoder.go_on(mixer, static_cast<std::size_t>(-1));
    return encoder.finish();
}

inline std::optional<std::string> decode_with(Mixer& mixer, std::string_view blob,
                                              std::size_t size) {
    MixDecoder decoder(std::string(blob), size);
    decoder.go_on(mixer, static_cast<std::size_t>(-1));
    const std::optional<std::string_view> chunk = decoder.chunk();
    return chunk ? std::optional<std::string>(*chunk) : std::nullopt;
}

}  // namespace lmfs
