// The instruction sets that the engine is built for.

#pragma once

#include "engine_views.hpp"

namespace lmfs::engine {

void run_portable(const Work& work);
#ifdef LMFS_HAVE_AVX2
void run_avx2(const Work& work);
#endif
#ifdef LMFS_HAVE_AVX_VNNI
void run_avx_vnni(const Work& work);
#endif
#ifdef LMFS_HAVE_AVX512_VNNI
void run_avx512_vnni(const Work& work);
#endif

}  // namespace lmfs::engine
