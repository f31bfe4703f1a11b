// The vocabulary: token ids in the byte order of their spellings; bytes to tokens and back.
//
// Every single byte is a token, so that any bytes at all can be spelled. Tokenizing is greedy: the
// longest token at each position. The trie is laid out breadth first, so that the children of a
// node are neighbours, and a node says which bytes lead on by a bitmap: 48 bytes a node whatever
// the fan-out, instead of 256 pointers.

#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace lmfs {

class Vocabulary {
public:
    static constexpr std::size_t kMaxTokens = 65536;
    // With it the trie has fewer than 2^32 nodes.
    static constexpr std::size_t kMaxSpelling = 65535;

    explicit Vocabulary(const std::vector<std::string_view>& spellings) {
        if (spellings.size() > kMaxTokens)
            throw std::invalid_argument("vocabulary: more than 65536 tokens");
        std::array<bool, 256> single{};
        starts_.reserve(spellings.size() + 1);
        starts_.push_back(0);
        for (std::size_t i = 0; i < spellings.size(); ++i) {
            const std::string_view spelling = spellings[i];
            const std::string which = "vocabulary: token " + std::to_string(i);
            if (spelling.empty() || spelling.size() > kMaxSpelling)
                throw std::invalid_argument(which + " is not 1 to 65535 bytes long");
            // string_view compares as unsigned bytes.
            if (i > 0 && !(spellings[i - 1] < spelling))
                throw std::invalid_argument(which + " is not after the one before it");
            if (spelling.size() == 1) single[static_cast<std::uint8_t>(spelling[0])] = true;
            bytes_.append(spelling);
            starts_.push_back(bytes_.size());
        }
        for (std::size_t byte = 0; byte < 256; ++byte)
            if (!single[byte])
                throw std::invalid_argument("vocabulary: no token spells the byte " +
                                            std::to_string(byte));
        build_trie();
    }

    std::size_t size() const { return starts_.size() - 1; }

    // Whether tokens mean the same.
    bool operator==(const Vocabulary& other) const {
        return this == &other || (starts_ == other.starts_ && bytes_ == other.bytes_);
    }

    // token < size()
    std::string_view spelling(std::size_t token) const {
        return std::string_view(bytes_).substr(starts_[token], starts_[token + 1] - starts_[token]);
    }

    std::vector<std::uint16_t> tokenize(std::string_view data) const {
        std::vector<std::uint16_t> tokens;
        tokens.reserve(data.size() / 2);
        for (std::size_t position = 0; position < data.size();) {
            std::int32_t best = -1;
            std::size_t length = 0;
            const Node* node = nodes_.data();
            for (std::size_t i = position; i < data.size(); ++i) {
                const auto byte = static_cast<std::uint8_t>(data[i]);
                const std::uint64_t word = node->present[byte / 64];
                const std::uint64_t bit = std::uint64_t{1} << (byte % 64);
                if ((word & bit) == 0) break;
                node = &nodes_[node->children + node->before[byte / 64] +
                               static_cast<std::uint32_t>(std::popcount(word & (bit - 1)))];
                if (node->token >= 0) {
                    best = node->token;
                    length = i + 1 - position;
                }
            }
            tokens.push_back(static_cast<std::uint16_t>(best));  // every byte is a token
            position += length;
        }
        return tokens;
    }

private:
    struct Node {
        std::array<std::uint64_t, 4> present{};  // bytes that lead to a child
        std::array<std::uint8_t, 4> before{};    // children in the words before each word
        std::uint32_t children = 0;              // the first child
        std::int32_t token = -1;                 // the token that ends here
    };

    // A node stands for the tokens [first, last) that share their first `depth` bytes.
    struct Span {
        std::size_t first, last, depth;
    };

    void build_trie() {
        std::vector<Span> level{{0, size(), 0}}, next;
        nodes_.emplace_back();
        for (std::size_t done = 0; !level.empty(); level.swap(next), next.clear()) {
            for (Span span : level) {
                Node node;
                if (spelling(span.first).size() == span.depth) {
                    // The shortest of them sorts first.
                    node.token = static_cast<std::int32_t>(span.first);
                    ++span.first;
                }
                node.children = static_cast<std::uint32_t>(nodes_.size());
                for (std::size_t i = span.first; i < span.last;) {
                    const auto byte = static_cast<std::uint8_t>(spelling(i)[span.depth]);
                    const std::size_t start = i;
                    while (i < span.last &&
                           static_cast<std::uint8_t>(spelling(i)[span.depth]) == byte)
                        ++i;
                    node.present[byte / 64] |= std::uint64_t{1} << (byte % 64);
                    next.push_back({start, i, span.depth + 1});
                    nodes_.emplace_back();
                }
                for (std::size_t word = 1; word < 4; ++word)
                    node.before[word] = static_cast<std::uint8_t>(
                        node.before[word - 1] + std::popcount(node.present[word - 1]));
                nodes_[done++] = node;
            }
        }
    }

    std::string bytes_;
    std::vector<std::size_t> starts_;
    std::vector<Node> nodes_;
};

}  // namespace lmfs
