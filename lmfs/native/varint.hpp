// Varints as the container writes them: seven bits a byte, the lowest first, the top bit of a byte
// set where another follows; 64-bit values.

#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace lmfs {

inline std::vector<std::uint64_t> decode_varints(std::string_view data) {
    std::vector<std::uint64_t> values;
    values.reserve(data.size() / 2);
    std::uint64_t value = 0;
    unsigned shift = 0;
    for (const char c : data) {
        const auto byte = static_cast<std::uint8_t>(c);
        // The tenth byte holds bit 63 alone, so this also stops an eleventh.
        if (shift == 63 && byte > 1) throw std::invalid_argument("varint: more than 64 bits");
        value |= std::uint64_t{byte & 0x7Fu} << shift;
        if (byte & 0x80u) {
            shift += 7;
        } else {
            values.push_back(value);
            value = 0;
            shift = 0;
        }
    }
    if (shift != 0) throw std::invalid_argument("varint: the data ends inside one");
    return values;
}

}  // namespace lmfs
