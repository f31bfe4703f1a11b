// What one core can do at most with the engine's products on AVX2, and how quickly it reads weights:
//
//     g++ -O3 -mavx2 tools/bench/roofline.cpp -o roofline && ./roofline
//
// The loop is that of lmfs/native/engine_avx2.cpp, over weights of several sizes: a step of one lane
// reads all weights of a model, many lanes read each block of them from the first cache. Processor
// time of one thread, the best of many rounds: what the core does when nobody disturbs it.

#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr std::size_t kQuads = 64;  // 256 inputs
constexpr std::size_t kVectors = 4;
constexpr std::size_t kBlockBytes = kQuads * kVectors * 32;
constexpr int kRounds = 300;

double now() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

__m256i load(const void* data) { return _mm256_load_si256(static_cast<const __m256i*>(data)); }

__attribute__((noinline)) void products(const std::uint8_t* x, const std::int8_t* weights,
                                        std::size_t blocks, std::int32_t* out) {
    for (std::size_t block = 0; block < blocks; ++block, weights += kBlockBytes) {
        __m256i total[kVectors] = {};
        for (std::size_t quad = 0; quad < kQuads; quad += 4) {
            __m256i sum[kVectors];
            for (std::size_t k = 0; k < 4; ++k) {
                std::int32_t four;
                __builtin_memcpy(&four, x + (quad + k) * 4, 4);
                const __m256i bytes = _mm256_set1_epi32(four);
                for (std::size_t v = 0; v < kVectors; ++v) {
                    const __m256i both = _mm256_maddubs_epi16(
                        bytes, load(weights + ((quad + k) * kVectors + v) * 32));
                    sum[v] = k == 0 ? both : _mm256_add_epi16(sum[v], both);
                    asm("" : "+x"(sum[v]));
                }
            }
            for (std::size_t v = 0; v < kVectors; ++v)
                total[v] = _mm256_add_epi32(total[v],
                                            _mm256_madd_epi16(sum[v], _mm256_set1_epi16(1)));
        }
        for (std::size_t v = 0; v < kVectors; ++v)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + v * 8), total[v]);
    }
}

__attribute__((noinline)) int reading(const std::int8_t* weights, std::size_t size) {
    __m256i sum[kVectors] = {};
    for (std::size_t at = 0; at < size; at += 32 * kVectors)
        for (std::size_t v = 0; v < kVectors; ++v)
            sum[v] = _mm256_xor_si256(sum[v], load(weights + at + 32 * v));
    return _mm256_extract_epi32(_mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]),
                                                 _mm256_xor_si256(sum[2], sum[3])), 0);
}

template <class Work>
double best(std::size_t repeats, const Work& work) {
    double least = 1e9;
    for (int round = 0; round < kRounds; ++round) {
        const double began = now();
        for (std::size_t k = 0; k < repeats; ++k) work();
        least = std::min(least, (now() - began) / static_cast<double>(repeats));
    }
    return least;
}

}  // namespace

int main() {
    alignas(64) static std::uint8_t x[kQuads * 4];
    static std::int32_t out[kVectors * 8];
    volatile int sink = 0;
    for (std::uint8_t& byte : x) byte = static_cast<std::uint8_t>(std::rand());
    for (const std::size_t kib : {16, 32, 128, 320, 448, 640, 1296, 2592, 5184}) {
        const std::size_t blocks = kib * 1024 / kBlockBytes, size = blocks * kBlockBytes;
        auto* weights = static_cast<std::int8_t*>(std::aligned_alloc(64, size));
        if (weights == nullptr) return 1;
        for (std::size_t k = 0; k < size; ++k) weights[k] = static_cast<std::int8_t>(k % 7) - 3;
        const std::size_t repeats = std::max<std::size_t>(1, (4 << 20) / size);
        const double multiplied = best(repeats, [&] { products(x, weights, blocks, out); });
        const double read = best(repeats, [&] { sink = sink + reading(weights, size); });
        std::printf("%5zu KiB: products %6.1f GMAC/s (%5.1f us), reading %6.1f GB/s (%5.1f us)\n",
                    size >> 10, static_cast<double>(size) / multiplied / 1e9, 1e6 * multiplied,
                    static_cast<double>(size) / read / 1e9, 1e6 * read);
        std::free(weights);
    }
}
