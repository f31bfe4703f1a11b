// Where a text stands: its words, fields and columns, and those of the line above.
//
// What a mixer's contexts are made of besides tokens; FORMAT.md, "Mixer", names and specifies it.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace lmfs::mixing {

inline std::uint32_t hash(std::uint32_t a, std::uint32_t b) {
    std::uint32_t h = a * 0x9E3779B1u ^ (b + 0x7F4A7C15u) * 0x85EBCA6Bu;
    h ^= h >> 15;
    h *= 0xC2B2AE35u;
    return h ^ h >> 13;
}

struct TextPlace {
    std::string text = "\n";  // since the line above began
    std::uint32_t line = 1;   // where it begins, in text
    std::vector<std::uint32_t> fields{1}, fields_above{0};
    std::uint32_t word = 0, word_before = 0, field = 0, first_field = 0;
    // Shapes: what stands there with every number read as one digit.
    std::uint32_t line_shape = 0, field_shape = 0;
    std::array<std::uint32_t, 2> shapes_before{};
    bool after_digit = false;

    // The text goes on with this byte.
    void take(std::uint8_t byte) {
        text.push_back(static_cast<char>(byte));
        const auto end = static_cast<std::uint32_t>(text.size());
        const bool digit = byte >= '0' && byte <= '9';
        if (!digit || !after_digit) {
            line_shape = hash(line_shape, digit ? '0' : byte);
            field_shape = hash(field_shape, digit ? '0' : byte);
        }
        after_digit = digit;
        if (!in_word(byte))
            shapes_before = {std::exchange(field_shape, 0), shapes_before[0]};
        if (byte == '\n') {
            line_shape = 0;
            line = end;
            fields_above.swap(fields);
            fields.assign(1, end);
            field = first_field = 0;
            forget_lines();
        } else if (in_word(byte)) {
            field = hash(field, byte);
        } else {
            if (fields.size() == 1) first_field = field;
            fields.push_back(end);
            field = byte;
        }
        if (in_word(byte)) {
            word = hash(word, byte | 32u);
        } else if (word != 0) {
            word_before = std::exchange(word, 0);
        }
    }

    // Of the same field of the line above, at most four bytes from this place on.
    std::uint32_t above() const {
        const std::size_t number = fields.size() - 1;
        if (number >= fields_above.size()) return 0;
        const std::size_t at = fields_above[number] + text.size() - fields.back();
        std::uint32_t bytes = 0;
        for (std::size_t i = 0; i < 4 && at + i < line; ++i)
            bytes |= std::uint32_t{static_cast<std::uint8_t>(text[at + i])} << (8 * i);
        return bytes;
    }

private:
    static bool in_word(std::uint8_t byte) {
        return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') ||
               (byte >= 'A' && byte <= 'Z') || byte >= 128;
    }

    // What stands before the line above.
    void forget_lines() {
        const std::uint32_t before = fields_above.front();
        text.erase(0, before);
        line -= before;
        for (std::uint32_t& at : fields_above) at -= before;
        fields.front() -= before;
    }
};

}  // namespace lmfs::mixing
