// Binary range coder: 32-bit range, carry-correct, probabilities of 22 bits.
//
// A blob b[0] b[1] ... b[n-1] is the number 0.b0b1b2... in base 256, with zeros after its end.
// Coding is narrowing an interval of [0, 1) by one decision after another: the blob is a short
// number inside the last interval. `range` is the interval's width and `low` its lower end, both
// in units of 256^-(shifts + 4), where `shifts` counts the bytes that have left the 32-bit window.
//
// Invariants, before and after every decision:
//   1. 2^24 <= range < 2^32. So bound = (range * p) >> 22 has 4 <= bound < range for every
//      1 <= p < 2^22: no decision is ever impossible, whatever the model said.
//   2. Encoder: (bytes so far) * 2^32 + low is the lower end of the interval. Its upper end never
//      passes 1, so a carry always stops at some byte that is not 0xFF: it cannot leave the blob.
//      A run of 0xFF that a carry passed is a run of 0x00, which ends the next carry at once:
//      carrying costs O(1) a byte, amortised, with no count of pending bytes.
//   3. Decoder: code = (blob's number) - low, in the same units, and code < range. It is checked
//      once at the start; every decision keeps it, on any input.
//
// Bit 1 takes the lower part [0, bound), bit 0 the upper part [bound, range).
//
// End of a blob: if a multiple of 2^32 is inside the last interval, it is written without its four
// zero bytes; else the largest multiple of 2^24 inside (invariant 1: there is one), without its
// three. A blob is therefore exactly `shifts` or `shifts + 1` bytes long, and there is exactly one
// blob for a sequence of decisions; RangeDecoder::ends_here() demands it.

#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace lmfs {

inline constexpr int kProbabilityBits = 22;
inline constexpr std::uint32_t kProbabilityOne = std::uint32_t{1} << kProbabilityBits;
inline constexpr std::uint32_t kMinRange = std::uint32_t{1} << 24;
inline constexpr std::uint32_t kStartRange = 0xFFFFFFFFu;

inline std::uint32_t range_bound(std::uint32_t range, std::uint32_t p1) {
    assert(range >= kMinRange && p1 >= 1 && p1 < kProbabilityOne);
    return static_cast<std::uint32_t>((std::uint64_t{range} * p1) >> kProbabilityBits);
}

class RangeEncoder {
public:
    void encode(bool bit, std::uint32_t p1) {
        const std::uint32_t bound = range_bound(range_, p1);
        if (bit) {
            range_ = bound;
        } else {
            add(bound);
            range_ -= bound;
        }
        while (range_ < kMinRange) {
            bytes_.push_back(static_cast<std::uint8_t>(low_ >> 24));
            low_ <<= 8;
            range_ <<= 8;
        }
    }

    // The whole blob; the encoder is spent.
    std::vector<std::uint8_t> finish() {
        const std::uint64_t last = std::uint64_t{low_} + range_ - 1;
        if (low_ == 0 || last >> 32 != 0) {
            // A multiple of 2^32 is inside: nothing of the window needs to be written.
            if (low_ != 0) carry();
        } else {
            bytes_.push_back(static_cast<std::uint8_t>(last >> 24));
        }
        return std::move(bytes_);
    }

private:
    void add(std::uint32_t amount) {
        low_ += amount;
        if (low_ < amount) carry();
    }

    void carry() {
        std::size_t i = bytes_.size();
        do {
            assert(i > 0);
            --i;
        } while (++bytes_[i] == 0);
    }

    std::vector<std::uint8_t> bytes_;
    std::uint32_t low_ = 0;
    std::uint32_t range_ = kStartRange;
};

// Reads a blob that it does not own. Never reads outside it; past the end there are zeros.
class RangeDecoder {
public:
    RangeDecoder(const std::uint8_t* blob, std::size_t size) : blob_(blob), size_(size) {
        for (int i = 0; i < 4; ++i) code_ = (code_ << 8) | next();
        damaged_ = code_ >= range_;
    }

    bool decode(std::uint32_t p1) {
        const std::uint32_t bound = range_bound(range_, p1);
        const bool bit = code_ < bound;
        if (bit) {
            range_ = bound;
        } else {
            code_ -= bound;
            range_ -= bound;
        }
        while (range_ < kMinRange) {
            code_ = (code_ << 8) | next();
            range_ <<= 8;
        }
        return bit;
    }

    // True once the blob cannot be one: not a number below the first interval's end, or shorter
    // than what has been decoded from it.
    bool damaged() const { return damaged_ || shifts() > size_; }

    // Whether the encoder, having coded these decisions and no more, would have written this blob.
    bool ends_here() const {
        if (damaged() || size_ - shifts() > 1) return false;
        if (size_ == shifts()) return true;
        const std::uint32_t flushed = std::uint32_t{blob_[size_ - 1]} << 24;
        const bool last_multiple = range_ - code_ <= kMinRange;
        const bool shorter_blob_possible = code_ >= flushed;
        return last_multiple && !shorter_blob_possible;
    }

private:
    std::uint32_t next() {
        const std::size_t i = position_++;
        return i < size_ ? blob_[i] : 0;
    }

    std::size_t shifts() const { return position_ - 4; }

    const std::uint8_t* blob_;
    std::size_t size_;
    std::size_t position_ = 0;
    std::uint32_t code_ = 0;
    std::uint32_t range_ = kStartRange;
    bool damaged_ = false;
};

}  // namespace lmfs
