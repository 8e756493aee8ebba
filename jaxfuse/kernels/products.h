// Products of a row of pixels with small matrices, and of two rows of pixels with each other.
#pragma once

#include "lanes.h"

namespace jaxfuse {

// Where a row of pixels lies: channels in vectors, pixel after pixel. In an image the vectors of a
// pixel are neighbours; in scratch memory the pixels of a vector are, so that whoever goes over the
// pixels reads memory in order.
struct Layout {
  int64_t pixel, vector;
};
inline Layout in_image(int channels) { return {channels, kLanes}; }
inline Layout in_scratch(int64_t pixels) { return {kLanes, pixels * kLanes}; }

inline int panel(int n) {
  return n % (kWide * kLanes) == 0 ? kWide * kLanes : n % (2 * kLanes) == 0 ? 2 * kLanes : kLanes;
}

// (k, n) as panels of columns, each contiguous; `at(i, j)` gives the elements.
template <typename F>
std::vector<float> packed(int64_t k, int64_t n, F at) {
  std::vector<float> out(k * n);
  const int width = panel(int(n));
  float* to = out.data();
  for (int64_t first = 0; first < n; first += width)
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = first; j < first + width; ++j) *to++ = at(i, j);
  return out;
}

// What becomes of a product: written, clipped to 0..6, added to another map or to a line of channels.
enum class End { kWrite, kClip, kAdd, kBias };

// sum (ROWS, NV vectors) += a column of ROWS numbers, `a_step` apart, times a row of NV vectors.
template <int ROWS, int NV>
__attribute__((always_inline)) inline void add_product(V (&sum)[ROWS][NV], const float* a,
                                                       int64_t a_step, const float* b,
                                                       int64_t b_step) {
  V row[NV];
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) row[v] = load(b + v * b_step);
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
    const V x = splat(a[m * a_step]);
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sum[m][v] += x * row[v];
  }
}

template <int ROWS, int NV, End END>
inline void product_block(const float* const* taps, int count, int64_t at, int k, Layout in,
                          const float* b, float* c, Layout out, const float* add) {
  V sum[ROWS][NV];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sum[m][v] = V{};
  for (int t = 0; t < count; ++t)
    for (int g = 0; g < k / kLanes; ++g) {
      const float* a = taps[t] + at * in.pixel + g * in.vector;
#pragma GCC unroll 2
      for (int i = 0; i < kLanes; ++i, b += NV * kLanes)
        add_product<ROWS, NV>(sum, a + i, in.pixel, b, kLanes);
    }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      const int64_t to = (at + m) * out.pixel + v * out.vector;
      V x = sum[m][v];
      if (END == End::kClip) x = clip6(x);
      if (END == End::kAdd) x += load(add + to);
      if (END == End::kBias) x += load(add + v * kLanes);
      store(c + to, x);
    }
}

template <int NV, End END>
void product_panels(const float* const* taps, int count, int64_t pixels, int k, Layout in,
                    const float* b, int n, float* c, Layout out, const float* add) {
  // As many rows as leave the sums in registers.
  constexpr int kRows = std::min(12, kRegisters * 3 / 4 / NV);
  const int width = NV * kLanes;
  for (int first = 0; first < n; first += width, b += int64_t{count} * k * width) {
    const int64_t to = first / kLanes * out.vector;
    int64_t i = 0;
    auto blocks = [&](auto rows) {
      constexpr int R = decltype(rows)::value;
      for (; i + R <= pixels; i += R)
        product_block<R, NV, END>(taps, count, i, k, in, b, c + to, out,
                                  END == End::kAdd    ? add + to
                                  : END == End::kBias ? add + first
                                                      : nullptr);
    };
    blocks(std::integral_constant<int, kRows>());
    blocks(std::integral_constant<int, 4>());
    blocks(std::integral_constant<int, 2>());
    blocks(std::integral_constant<int, 1>());
  }
}

// c (pixels, n) = sum over taps of a (pixels, k) b; b packed, (taps * k, n).
template <End END>
void product(const float* const* taps, int count, int64_t pixels, int k, Layout in, const float* b,
             int n, float* c, Layout out, const float* add = nullptr) {
  switch (panel(n) / kLanes) {
    case 1: return product_panels<1, END>(taps, count, pixels, k, in, b, n, c, out, add);
    case 2: return product_panels<2, END>(taps, count, pixels, k, in, b, n, c, out, add);
    default: return product_panels<4, END>(taps, count, pixels, k, in, b, n, c, out, add);
  }
}

template <int NV>
void outer_panel(const float* a, int m, Layout of_a, const float* b, Layout of_b, int64_t pixels,
                 float* c, int n) {
  constexpr int kRows = 4;
  for (int i = 0; i < m; i += kRows) {
    const float* from = a + i / kLanes * of_a.vector + i % kLanes;
    V sum[kRows][NV];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) sum[r][v] = load(c + (i + r) * n + v * kLanes);
    for (int64_t p = 0; p < pixels; ++p)
      add_product<kRows, NV>(sum, from + p * of_a.pixel, 1, b + p * of_b.pixel, of_b.vector);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) store(c + (i + r) * n + v * kLanes, sum[r][v]);
  }
}

// c (m, n), plain rows, += sum over pixels of a (pixels, m)^T b (pixels, n).
inline void outer(const float* a, int m, Layout of_a, const float* b, int n, Layout of_b,
                  int64_t pixels, float* c) {
  const int width = panel(n);
  for (int first = 0; first < n; first += width) {
    const float* part = b + first / kLanes * of_b.vector;
    switch (width / kLanes) {
      case 1: outer_panel<1>(a, m, of_a, part, of_b, pixels, c + first, n); break;
      case 2: outer_panel<2>(a, m, of_a, part, of_b, pixels, c + first, n); break;
      default: outer_panel<4>(a, m, of_a, part, of_b, pixels, c + first, n);
    }
  }
}

}  // namespace jaxfuse
