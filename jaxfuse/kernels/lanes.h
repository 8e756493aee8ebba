// Vectors of float32 as wide as the processor's, and work shared out over XLA's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace jaxfuse {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif
// Vectors in a row of a product's block.
constexpr int kWide = kRegisters / 8;

typedef float V __attribute__((vector_size(kLanes * 4)));
typedef float Unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));

inline V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
inline void accumulate(float* p, V v) { store(p, load(p) + v); }
// x - 0, which compilers know to be x; x + 0 is not where x is -0.
inline V splat(float x) { return x - V{}; }
// Asks for memory that is needed in a while.
template <bool WRITE = false>
inline void expect(const float* p, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(p + i, WRITE, 2);
}
// Both written so that NaN stays NaN.
inline V at_least(V x, float low) { return x < splat(low) ? splat(low) : x; }
inline V at_most(V x, float high) { return x > splat(high) ? splat(high) : x; }
inline V clip6(V x) { return at_most(at_least(x, 0.0f), 6.0f); }

inline float total(V v) {
  float part[kLanes];
  store(part, v);
  for (int n = kLanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) part[i] += part[i + n];
  return part[0];
}

// erf(x) = x P(x^2) / Q(x^2), fitted over |x| <= 3.9, beyond which it rounds to 1: off by 5e-7 at most.
inline V erf(V x) {
  constexpr float p[] = {2.05035644e-06f, 2.87446310e-04f, 3.83663620e-03f,
                         5.29661924e-02f, 1.91936150e-01f, 1.12837899e+00f};
  constexpr float q[] = {3.82298422e-05f, 1.18166523e-03f, 1.51087400e-02f,
                         1.14756115e-01f, 5.03430784e-01f, 1.0f};
  const V within = at_most(at_least(x, -3.9f), 3.9f);
  const V s = within * within;
  V above = splat(p[0]), below = splat(q[0]);
#pragma GCC unroll 8
  for (int i = 1; i < 6; ++i) {
    above = above * s + p[i];
    below = below * s + q[i];
  }
  const V inside = within * above / below;
  return x > splat(3.9f) ? splat(1.0f) : x < splat(-3.9f) ? splat(-1.0f) : inside;
}

// The standard normal distribution function.
inline V below_normal(V x) { return 0.5f + 0.5f * erf(x * 0.707106781f); }

// 2^x: 2^n times a series of the rest; x is kept within -126 .. 127.
inline V power_of_two(V x) {
  x = at_most(at_least(x, -126.0f), 127.0f);
  const V n = (x + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to whole numbers
  const V r = (x - n) * 0.693147181f;
  V series = splat(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    series = series * r + c;
  const I bits = (__builtin_convertvector(n, I) + 127) << 23;
  V scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return series * scale;
}

inline V exponential(V x) {
  const V y = 2.0f * power_of_two(x * 1.44269504f - 1.0f);
  return x > splat(88.7228394f) ? splat(INFINITY) : y;
}

// The density of the standard normal distribution.
inline V normal_density(V x) { return power_of_two(x * x * -0.721347520f) * 0.398942280f; }

// Calls run(0) ... run(count - 1), each once, on the threads of the pool and this one.
template <typename F>
void share_out(xla::ffi::ThreadPool& pool, int64_t count, const F& run) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  // Threads that come late find nothing left and do not touch `run`, which may be gone by then;
  // this one does everything where none comes.
  auto work = [shared, count, &run] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; shared->done.fetch_add(1)) run(i);
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  // At most as long as the last pieces take. No condition variable: libraries of C++ that differ
  // between compiler and Python would not agree on its version.
  while (shared->done.load() < count) std::this_thread::yield();
}

// Memory of the calling thread, kept between calls, handed out piece by piece.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    thread_local std::vector<float> memory;
    if (int64_t(memory.size()) < floats + 16) memory.resize(floats + 16);
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory.data());
    next_ = reinterpret_cast<float*>((start + 63) / 64 * 64);
  }
  float* take(int64_t floats) {
    float* piece = next_;
    next_ += floats;
    return piece;
  }

 private:
  float* next_;
};

}  // namespace jaxfuse
