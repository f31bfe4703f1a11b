// Where everything in a member lies, out of its frame heads (FORMAT.md, "Frames").
//
// lmfs/layout.py owns the rules and the errors; here is only the loop over the frames.

#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace lmfs {

struct LayoutRules {
    std::int64_t chunk_size;
    unsigned coding_bits;
    std::int64_t codings;  // so many are declared
    std::int64_t first;    // where the first frame begins
    std::int64_t limit;    // where the last one must have ended; below 2^62
};

// One entry a chunk, as in lmfs.layout.Layout.
struct MemberLayout {
    struct Section {
        std::int64_t kind, offset, size;
    };

    std::vector<std::int64_t> starts, sizes, codings, coded_sizes, frame_offsets, blob_offsets,
        head_starts;
    std::vector<Section> sections;
    std::int64_t size = 0;
    std::int64_t end = 0;
};

// Reads heads one by one. raises: std::invalid_argument that says what is wrong
class HeadReader {
public:
    explicit HeadReader(std::string_view heads) : heads_(heads) {}

    bool ended() const { return at_ == heads_.size(); }
    std::size_t at() const { return at_; }

    // A varint, in as few bytes as it needs and below 2^63.
    std::int64_t varint() {
        std::uint64_t value = 0;
        for (unsigned length = 0; length < 9; ++length) {
            if (ended()) throw std::invalid_argument("a varint is cut off");
            const auto byte = static_cast<std::uint8_t>(heads_[at_++]);
            value |= static_cast<std::uint64_t>(byte & 0x7f) << (7 * length);
            if (byte < 0x80) {
                if (length != 0 && byte == 0)
                    throw std::invalid_argument("a varint is longer than it must be");
                return static_cast<std::int64_t>(value);
            }
        }
        throw std::invalid_argument("a varint is longer than nine bytes");
    }

private:
    std::string_view heads_;
    std::size_t at_ = 0;
};

// raises: std::invalid_argument that says what is wrong
inline MemberLayout parse_heads(std::string_view heads, const LayoutRules& rules) {
    constexpr std::int64_t kIndex = 0, kShortChunk = 1, kChecksumBytes = 4;
    const std::int64_t escape = (std::int64_t{1} << rules.coding_bits) - 1;
    MemberLayout layout;
    HeadReader reader(heads);
    layout.end = rules.first;
    if (layout.end > rules.limit) throw std::invalid_argument("no room for frames");
    while (!reader.ended()) {
        const std::size_t begin = reader.at();
        std::int64_t word = reader.varint(), size = rules.chunk_size;
        const std::int64_t kind = word >> rules.coding_bits;
        const bool escaped = (word & escape) == escape;
        if (escaped) {
            if (kind == kIndex || reader.ended())
                throw std::invalid_argument("a frame is cut off");
            size = reader.varint();
        }
        const bool section = escaped && kind != kShortChunk;
        std::int64_t stored = size;
        if (!section) {
            if (escaped) {
                if (size < 1 || size >= rules.chunk_size)
                    throw std::invalid_argument("a short chunk's size");
                if (reader.ended()) throw std::invalid_argument("a frame is cut off");
                word = reader.varint();
            }
            stored = word >> rules.coding_bits;
            if ((word & escape) >= rules.codings)
                throw std::invalid_argument("an undeclared coding");
            if (stored < 1 || stored > size)
                throw std::invalid_argument("a chunk's coded length");
        }
        // Every term is at most the limit, so that none of the sums overflows.
        const std::int64_t blob =
            layout.end + static_cast<std::int64_t>(reader.at() - begin) + kChecksumBytes;
        if (stored > rules.limit || blob + stored > rules.limit)
            throw std::invalid_argument("the frames are longer than they can be");
        if (section) {
            layout.sections.push_back({kind, blob, stored});
        } else {
            layout.starts.push_back(layout.size);
            layout.sizes.push_back(size);
            layout.codings.push_back(word & escape);
            layout.coded_sizes.push_back(stored);
            layout.frame_offsets.push_back(layout.end);
            layout.blob_offsets.push_back(blob);
            layout.head_starts.push_back(static_cast<std::int64_t>(begin));
            layout.size += size;
        }
        layout.end = blob + stored;
    }
    return layout;
}

}  // namespace lmfs
