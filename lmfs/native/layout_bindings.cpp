// lmfs.native._core: the binding of the parser of frame heads. No algorithm lives here.

#include "layout_bindings.hpp"

#include <utility>

#include "layout.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace lmfs {

namespace {

nb::bytes column(const std::vector<std::int64_t>& numbers) {
    return nb::bytes(numbers.data(), numbers.size() * sizeof(std::int64_t));
}

nb::tuple parse(const nb::bytes& heads, std::int64_t chunk_size, unsigned coding_bits,
                std::int64_t codings, std::int64_t first, std::int64_t limit) {
    if (chunk_size < 1 || coding_bits > 30 || first < 0 || limit < 0 ||
        limit > std::int64_t{1} << 62)
        throw std::invalid_argument("a number outside its range");
    const std::string_view view{static_cast<const char*>(heads.data()), heads.size()};
    MemberLayout layout;
    {
        nb::gil_scoped_release unlocked;
        layout = parse_heads(view, {chunk_size, coding_bits, codings, first, limit});
    }
    nb::list sections;
    for (const MemberLayout::Section& section : layout.sections)
        sections.append(nb::make_tuple(section.kind, section.offset, section.size));
    return nb::make_tuple(
        nb::make_tuple(column(layout.starts), column(layout.sizes), column(layout.codings),
                       column(layout.coded_sizes), column(layout.frame_offsets),
                       column(layout.blob_offsets), column(layout.head_starts)),
        sections, layout.size, layout.end);
}

}  // namespace

void bind_layout(nb::module_& module) {
    module.def("parse_heads", &parse, "heads"_a, nb::kw_only(), "chunk_size"_a, "coding_bits"_a,
               "codings"_a, "first"_a, "limit"_a);
}

}  // namespace lmfs
