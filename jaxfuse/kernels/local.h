// Features of a pixel's neighbourhood: LayerNorm, 1x1 and 3x3, row by row through a tile.
#pragma once

#include "products.h"

namespace jaxfuse {

using Map = xla::ffi::Buffer<xla::ffi::F32>;
using Result = xla::ffi::ResultBuffer<xla::ffi::F32>;

enum Activation : int64_t { kNone = 0, kGatedGelu = 1, kRelu6 = 2 };

// What the features are made by, with weights as they are read.
struct Local {
  int64_t images, height, width;
  int channels;           // of the input
  bool normalised;        // by LayerNorm first
  bool dense;             // a 3x3 of all channels; otherwise 1x1, then depthwise 3x3
  bool paired;            // depthwise in groups of two channels
  bool fits;              // numbers of channels are multiples of the lanes
  bool reflect;           // the expanded map at the image's edge, instead of zeros
  Activation activation;  // of the features; kRelu6 of the expanded map as well
  int expanded;           // channels between 1x1 and 3x3; dense: those of the input
  int features;           // channels after the 3x3
  const float* x;
  const float* weight;
  const float* bias;
  const float* spatial;  // depthwise (3, 3, features), paired (3, 3, 2, features)
  const float* plain_expand;
  const float* plain_dense;
  std::vector<float> expand, dense3x3;  // packed
  bool minimal = false;                 // dense: by minimal filtering, see `pairs`

  Local(Map image, Map norm_weight, Map norm_bias, Map expansion, Map kernel, int64_t kind,
        int64_t reflects) {
    const auto shape = image.dimensions();
    images = shape[0], height = shape[1], width = shape[2], channels = int(shape[3]);
    x = image.typed_data();
    normalised = norm_weight.element_count() > 0;
    weight = norm_weight.typed_data();
    bias = norm_bias.typed_data();
    activation = Activation(kind);
    reflect = reflects != 0;
    const auto taps = kernel.dimensions();
    features = int(taps.back());
    dense = expansion.element_count() == 0;
    paired = !dense && taps.size() == 4;
    spatial = plain_dense = kernel.typed_data();
    plain_expand = expansion.typed_data();
    expanded = dense ? channels : int(expansion.dimensions().back());
    fits = channels % kLanes == 0 && expanded % kLanes == 0 &&
           features % (paired ? 4 * kLanes : kLanes) == 0 && !(paired && reflect);
    if (!fits) return;
    if (dense) {
      filter(false);
    } else {
      expand = packed(channels, expanded,
                      [&](int64_t i, int64_t j) { return plain_expand[i * expanded + j]; });
    }
  }

  // Has the dense 3x3 done by minimal filtering along rows (Winograd's F(2, 3)): two pixels take four
  // products instead of six.
  void filter(bool minimally) {
    minimal = dense && minimally;
    if (!dense) return;
    const int64_t c = channels;
    auto tap = [&](int64_t row, int64_t column, int64_t i, int64_t j) {
      return plain_dense[((row * 3 + column) * c + i) * features + j];
    };
    if (!minimal) {
      dense3x3 = packed(9 * c, features, [&](int64_t i, int64_t j) { return tap(0, i / c, i % c, j); });
      return;
    }
    dense3x3.clear();
    for (int point = 0; point < 4; ++point) {
      const auto part = packed(3 * c, features, [&](int64_t i, int64_t j) {
        const float left = tap(i / c, 0, i % c, j), right = tap(i / c, 2, i % c, j);
        if (point == 0) return left;
        if (point == 3) return right;
        const float middle = tap(i / c, 1, i % c, j);
        return 0.5f * (left + right + (point == 1 ? middle : -middle));
      });
      dense3x3.insert(dense3x3.end(), part.begin(), part.end());
    }
  }

  bool clipped() const { return activation == kRelu6; }
  int64_t taps() const { return dense ? 9ll * channels * features : (paired ? 18ll : 9ll) * features; }
};

inline int64_t mirrored_first(int64_t size) { return std::min<int64_t>(1, size - 1); }
inline int64_t mirrored_last(int64_t size) { return std::max<int64_t>(size - 2, 0); }

struct Tile {
  int64_t top, left, height, width;
  int64_t bottom() const { return top + height; }
  int64_t right() const { return left + width; }
};

constexpr int64_t kTileSide = 64;

inline std::vector<Tile> tiles(int64_t height, int64_t width) {
  std::vector<Tile> found;
  for (int64_t y = 0; y < height; y += kTileSide)
    for (int64_t x = 0; x < width; x += kTileSide)
      found.push_back({y, x, std::min(kTileSide, height - y), std::min(kTileSide, width - x)});
  return found;
}

// The input channel in the even half that feature `o` of a paired 3x3 takes; the odd half's is as
// far on. Features are (gates of even, gates of odd, values of even, values of odd).
inline int paired_input(int o, int features) {
  const int quarter = features / 4;
  return o % quarter + (o >= 2 * quarter ? quarter : 0);
}

// LayerNorm of every pixel's channels, biased variance, eps 1e-5. Keeps 1 / deviation if asked.
// `next`: how far on the row lies that is read next.
inline void normalise(const float* x, int64_t pixels, int channels, const float* weight,
                      const float* bias, float* out, Layout to, int64_t next,
                      float* scales = nullptr) {
  const float share = 1.0f / channels;
  for (int64_t p = 0; p < pixels; ++p, x += channels, out += to.pixel) {
    expect(x + next, channels);
    V sum{}, squares{};
    for (int c = 0; c < channels; c += kLanes) sum += load(x + c);
    const V mean = splat(total(sum) * share);
    for (int c = 0; c < channels; c += kLanes) {
      const V d = load(x + c) - mean;
      squares += d * d;
    }
    const float scale = 1.0f / std::sqrt(total(squares) * share + 1e-5f);
    if (scales) scales[p] = scale;
    for (int c = 0; c < channels; c += kLanes) {
      const V d = (load(x + c) - mean) * splat(scale);
      store(out + c / kLanes * to.vector, d * load(weight + c) + load(bias + c));
    }
  }
}

// The depthwise 3x3 of one vector of channels over a row, summed over its inputs: three rows of
// each, from one pixel left of the output.
template <int INPUTS>
void convolve(const float* const (*rows)[3], const float* const* kernels, int step, bool flipped,
              int64_t width, float* out) {
  V k[INPUTS][9];
  for (int n = 0; n < INPUTS; ++n)
    for (int i = 0; i < 9; ++i) k[n][i] = load(kernels[n] + (flipped ? 8 - i : i) * step);
  int64_t at = 0;
  auto block = [&](auto pixels) {
    constexpr int P = decltype(pixels)::value;
    for (; at + P <= width; at += P) {
      V sum[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[p] = V{};
#pragma GCC unroll 2
      for (int n = 0; n < INPUTS; ++n)
#pragma GCC unroll 9
        for (int i = 0; i < 9; ++i)
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
            sum[p] += load(rows[n][i / 3] + (at + i % 3 + p) * kLanes) * k[n][i];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) store(out + (at + p) * kLanes, sum[p]);
    }
  };
  block(std::integral_constant<int, 8>());
  block(std::integral_constant<int, 1>());
}

// Features o .. o + kLanes of a row, before activation. `rows`: three rows of `line` pixels.
inline void local_vector(const Local& l, const float* const* rows, int64_t line, int64_t width,
                         int o, float* out) {
  const float* from[2][3];
  const float* kernels[2] = {l.spatial + o, l.spatial + l.features + o};
  const int first = l.paired ? paired_input(o, l.features) : o;
  for (int n = 0; n < (l.paired ? 2 : 1); ++n)
    for (int i = 0; i < 3; ++i)
      from[n][i] = rows[i] + (first + n * (l.expanded / 2)) / kLanes * line * kLanes;
  if (l.paired)
    convolve<2>(from, kernels, 2 * l.features, false, width, out);
  else
    convolve<1>(from, kernels, l.features, false, width, out);
}

// Pairs of pixels in a row of a tile.
inline int64_t pairs(int64_t width) { return (width + 1) / 2; }

// A row of width + 2 pixels, and one beyond that is read and does not count, as minimal filtering
// takes it: four lines of pairs.
inline void in_pairs(const float* row, int64_t width, int channels, float* out) {
  const int64_t line = (width + 3) * kLanes, count = pairs(width), point = count * channels;
  for (int c = 0; c < channels; c += kLanes, row += line, out += count * kLanes)
    for (int64_t p = 0; p < count; ++p) {
      const float* d = row + 2 * p * kLanes;
      const V a = load(d), b = load(d + kLanes), e = load(d + 2 * kLanes), f = load(d + 3 * kLanes);
      float* to = out + p * kLanes;
      store(to, a - e);
      store(to + point, b + e);
      store(to + 2 * point, e - b);
      store(to + 3 * point, b - f);
    }
}

inline void local_minimal(const Local& l, const float* const* rows, int64_t width, float* out,
                          float* room) {
  const int64_t count = pairs(width), point = count * l.channels, size = count * l.features;
  for (int k = 0; k < 4; ++k) {
    const float* taps[3] = {rows[0] + k * point, rows[1] + k * point, rows[2] + k * point};
    product<End::kWrite>(taps, 3, count, l.channels, in_scratch(count),
                         l.dense3x3.data() + k * 3 * l.channels * l.features, l.features, room + k * size,
                         in_scratch(count));
  }
  for (int c = 0; c < l.features; c += kLanes, room += count * kLanes, out += width * kLanes)
    for (int64_t p = 0; p < count; ++p) {
      const float* m = room + p * kLanes;
      const V b = load(m + size), e = load(m + 2 * size);
      store(out + 2 * p * kLanes, load(m) + b + e);
      if (2 * p + 1 < width) store(out + (2 * p + 1) * kLanes, b - e - load(m + 3 * size));
    }
}

inline void local_dense(const Local& l, const float* const* rows, int64_t line, int64_t width,
                        float* out) {
  const float* taps[9];
  for (int i = 0; i < 9; ++i) taps[i] = rows[i / 3] + i % 3 * kLanes;
  product<End::kWrite>(taps, 9, width, l.channels, in_scratch(line), l.dense3x3.data(), l.features,
                       out, in_scratch(width));
}

// Floats that `features` works in.
inline int64_t spare_floats(const Local& l, int64_t width) {
  return l.minimal ? 4 * pairs(width) * l.features : 2 * width * kLanes;
}

// A row's features after their activation, in scratch layout.
inline void features(const Local& l, const float* const* rows, int64_t width, float* out,
                     float* room) {
  if (l.minimal) return local_minimal(l, rows, width, out, room);
  if (l.dense) return local_dense(l, rows, width + 2, width, out);
  const int64_t vector = width * kLanes;
  if (l.activation == kGatedGelu) {
    const int half = l.features / 2;
    float* value = room + vector;
    for (int o = 0; o < half; o += kLanes, out += vector) {
      local_vector(l, rows, width + 2, width, o, room);
      local_vector(l, rows, width + 2, width, o + half, value);
      for (int64_t i = 0; i < vector; i += kLanes) {
        const V gate = load(room + i);
        store(out + i, gate * below_normal(gate) * load(value + i));
      }
    }
    return;
  }
  for (int o = 0; o < l.features; o += kLanes, out += vector) {
    local_vector(l, rows, width + 2, width, o, out);
    if (l.activation == kRelu6)
      for (int64_t i = 0; i < vector; i += kLanes) store(out + i, clip6(load(out + i)));
  }
}

inline int64_t sweep_floats(const Local& l, int64_t width) {
  return (width + 3) * ((l.minimal ? 6 : 3) * l.expanded + l.channels);
}

// Goes over a tile from top to bottom, calling `row(y, three)` with what the 3x3 reads: the rows
// above, at and below y in scratch layout of tile.width + 2 pixels, from one pixel left of it; or as
// `in_pairs` gives them.
template <typename F>
void sweep(const Local& l, int64_t image, const Tile& tile, float* memory, F row) {
  const int depth = l.expanded;
  const int64_t pixels = tile.width + (l.minimal ? 3 : 2);
  const Layout layout = in_scratch(pixels);
  const int64_t kept = l.minimal ? 4 * pairs(tile.width) * depth : pixels * depth;
  const int64_t first = std::max<int64_t>(tile.left - 1, 0);
  const int64_t last = std::min(tile.right() + 1, l.width);
  float* ring[3] = {memory, memory + kept, memory + 2 * kept};
  float* plain = memory + 3 * kept;
  if (l.minimal) std::memset(plain, 0, 4 * pixels * depth);
  auto make = [&](int64_t y, float* made) {
    if (y < 0 || y >= l.height) {
      if (!l.reflect) {
        std::memset(made, 0, 4 * kept);
        return;
      }
      y = y < 0 ? mirrored_first(l.height) : mirrored_last(l.height);
    }
    const float* in = l.x + ((image * l.height + y) * l.width + first) * l.channels;
    float* const out = l.minimal ? plain : made;
    float* inside = out + (first - tile.left + 1) * kLanes;
    Layout from = in_image(l.channels);
    if (l.normalised) {
      float* to = l.dense ? inside : plain;
      normalise(in, last - first, l.channels, l.weight, l.bias, to, layout, l.width * l.channels);
      in = to;
      from = layout;
    } else if (l.dense) {
      for (int64_t p = 0; p < last - first; ++p)
        for (int c = 0; c < depth; c += kLanes)
          store(inside + p * kLanes + c / kLanes * layout.vector, load(in + p * depth + c));
    }
    if (!l.dense && l.clipped())
      product<End::kClip>(&in, 1, last - first, l.channels, from, l.expand.data(), depth, inside, layout);
    else if (!l.dense)
      product<End::kWrite>(&in, 1, last - first, l.channels, from, l.expand.data(), depth, inside, layout);
    auto edge = [&](int64_t column, int64_t mirrored) {
      for (int c = 0; c < depth; c += kLanes) {
        float* start = out + c / kLanes * layout.vector;
        const V v = l.reflect ? load(start + (mirrored - tile.left + 1) * kLanes) : V{};
        store(start + (column - tile.left + 1) * kLanes, v);
      }
    };
    if (tile.left == 0) edge(-1, mirrored_first(l.width));
    if (tile.right() == l.width) edge(l.width, mirrored_last(l.width));
    if (l.minimal) in_pairs(plain, tile.width, depth, made);
  };
  make(tile.top - 1, ring[0]);
  make(tile.top, ring[1]);
  for (int64_t y = tile.top; y < tile.bottom(); ++y) {
    make(y + 1, ring[2]);
    row(y, ring);
    std::rotate(ring, ring + 1, ring + 3);
  }
}

}  // namespace jaxfuse
