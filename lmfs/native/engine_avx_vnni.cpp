// The engine for AVX-VNNI.

#include "engine_isa.hpp"
#include "engine_vnni.hpp"

namespace lmfs::engine {
namespace {

__m256i dot(__m256i total, __m256i bytes, __m256i weights) {
    return _mm256_dpbusd_avx_epi32(total, bytes, weights);
}

}  // namespace

void run_avx_vnni(const Work& work) { run<VnniDot>(work); }

}  // namespace lmfs::engine
