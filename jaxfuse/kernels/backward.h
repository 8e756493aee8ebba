// From the gradient of a Local's features to those of its input and weights, tile by tile.
#pragma once

#include <array>

#include "local.h"

namespace jaxfuse {

// Weights as the backward pass multiplies with them.
struct Transposed {
  std::vector<float> expand, dense3x3;

  explicit Transposed(const Local& l) {
    if (l.dense)
      dense3x3 = packed(9 * l.features, l.channels, [&](int64_t i, int64_t j) {
        return l.plain_dense[((8 - i / l.features) * l.channels + j) * l.features + i % l.features];
      });
    else
      expand = packed(l.expanded, l.channels, [&](int64_t i, int64_t j) {
        return l.plain_expand[j * l.expanded + i];
      });
  }
};

// Gradients of a Local's weights, one after the other in memory.
struct Gradients {
  float *weight, *bias, *expand, *taps;

  Gradients(const Local& l, float* memory)
      : weight(memory),
        bias(weight + l.channels),
        expand(bias + l.channels),
        taps(expand + (l.dense ? 0 : l.channels * l.expanded)) {}
  static int64_t size(const Local& l) {
    return 2 * l.channels + (l.dense ? 0 : l.channels * l.expanded) + l.taps();
  }
};

// Sums over tiles are formed in groups of tiles of one image, then over the groups in order, so that
// they do not depend on how many threads there are.
struct Groups {
  int64_t per_image, count, size;
  std::vector<float> sums;

  Groups(const Local& l, int64_t tile_count, int64_t floats)
      : per_image(std::min(tile_count, 64 / std::clamp<int64_t>(l.images, 1, 64))),
        count(l.images * per_image),
        size(floats),
        sums(count * floats, 0.0f) {}

  // The sum over the groups first .. last of what begins at `from`.
  void add_up(int64_t first, int64_t last, int64_t from, int64_t floats, float* to) const {
    for (int64_t i = 0; i < floats; ++i) {
      double sum = 0.0;
      for (int64_t g = first; g < last; ++g) sum += sums[g * size + from + i];
      to[i] = float(sum);
    }
  }
  template <typename F>
  void run(xla::ffi::ThreadPool& pool, const std::vector<Tile>& cut, F tile) {
    share_out(pool, count, [&](int64_t group) {
      for (size_t i = group % per_image; i < cut.size(); i += per_image)
        tile(group / per_image, cut[i], sums.data() + group * size);
    });
  }
};

// The part of the image whose features' gradients a tile needs: one pixel more on every side.
inline Tile widened(const Local& l, const Tile& tile) {
  const int64_t top = std::max<int64_t>(tile.top - 1, 0), left = std::max<int64_t>(tile.left - 1, 0);
  return {top, left, std::min(tile.bottom() + 1, l.height) - top,
          std::min(tile.right() + 1, l.width) - left};
}

class BackwardTile {
 public:
  BackwardTile(const Local& local, const Transposed& transposed, int64_t image, const Tile& tile,
               float* sums, float* dx, const float* residual)
      : l(local),
        t(transposed),
        image_(image),
        tile_(tile),
        wide_(widened(local, tile)),
        line_(tile.width + 2),
        sums_(local, sums),
        dx_(dx),
        residual_(residual) {}

  static int64_t floats(const Local& l) {
    const int64_t w = kTileSide + 4;
    return sweep_floats(l, w) + w * (4 * l.features + 2 * l.expanded + 4 * l.channels + 1);
  }

  // `gradient(y, rows, out)` writes the features' gradients of a row of `widened`, given the three
  // rows that `sweep` gives, in scratch layout of tile.width + 2 pixels.
  template <typename F>
  void run(Scratch& scratch, F gradient) {
    float* memory = scratch.take(sweep_floats(l, wide_.width));
    const int64_t row = line_ * l.features;
    float* ring = scratch.take(4 * row);
    std::memset(ring, 0, 4 * 4 * row);  // pixels outside the image stay zero
    dz_[0] = ring, dz_[1] = ring + row, dz_[2] = ring + 2 * row, zeros_ = ring + 3 * row;
    de_ = scratch.take(tile_.width * l.expanded);
    folded_ = scratch.take(line_ * kLanes);
    in_ = scratch.take(tile_.width * l.channels);
    plain_ = scratch.take(tile_.width * l.channels);
    din_ = scratch.take(tile_.width * l.channels);
    scales_ = scratch.take(tile_.width);
    sweep(l, image_, wide_, memory, [&](int64_t y, float* const* rows) {
      std::rotate(dz_.begin(), dz_.begin() + 1, dz_.end());
      gradient(y, rows, dz_[2] + (wide_.left - tile_.left + 1) * kLanes);
      if (owned(y)) to_taps(rows);
      if (owned(y - 1)) finish(y - 1, rows[0]);
      if (y == l.height - 1 && owned(y)) {
        dz_ = {dz_[1], dz_[2], zeros_};
        finish(y, rows[1]);
      }
    });
  }

 private:
  bool owned(int64_t y) const { return y >= tile_.top && y < tile_.bottom(); }
  int64_t shift() const { return tile_.left - wide_.left; }

  void to_taps(const float* const* rows) {
    const int64_t wide = wide_.width + 2;
    const float* dz = dz_[2] + kLanes;
    if (l.dense) {
      for (int i = 0; i < 9; ++i)
        outer(rows[i / 3] + (i % 3 + shift()) * kLanes, l.channels, in_scratch(wide), dz, l.features,
              in_scratch(line_), tile_.width, sums_.taps + i * l.channels * l.features);
      return;
    }
    const int step = (l.paired ? 2 : 1) * l.features;
    for (int o = 0; o < l.features; o += kLanes, dz += line_ * kLanes) {
      const int first = l.paired ? paired_input(o, l.features) : o;
      for (int n = 0; n < (l.paired ? 2 : 1); ++n) {
        V sum[9];
        for (auto& s : sum) s = V{};
        const int64_t from = (first + n * (l.expanded / 2)) * wide + shift() * kLanes;
        for (int64_t p = 0; p < tile_.width; ++p) {
          const V pull = load(dz + p * kLanes);
#pragma GCC unroll 9
          for (int i = 0; i < 9; ++i) sum[i] += pull * load(rows[i / 3] + from + (p + i % 3) * kLanes);
        }
        for (int i = 0; i < 9; ++i) accumulate(sums_.taps + i * step + n * l.features + o, sum[i]);
      }
    }
  }

  // The gradient of channels c .. of an expanded row, given the features' of three rows.
  void expanded_vector(const float* const* dz, int c, int64_t width, int64_t from, float* out) const {
    const float* rows[2][3];
    const float* kernels[2] = {l.spatial + c, nullptr};
    int outputs[2] = {c, c};
    if (l.paired) {
      const int quarter = l.features / 4, half = l.expanded / 2;
      const int odd = c >= half, within = c - odd * half;
      // Both gates or both values take this channel.
      outputs[0] = within < quarter ? within : within + quarter;
      outputs[1] = outputs[0] + quarter;
      for (int n = 0; n < 2; ++n) kernels[n] = l.spatial + odd * l.features + outputs[n];
    }
    for (int n = 0; n < (l.paired ? 2 : 1); ++n)
      for (int i = 0; i < 3; ++i) rows[n][i] = dz[i] + outputs[n] * line_ + from * kLanes;
    if (l.paired)
      convolve<2>(rows, kernels, 2 * l.features, true, width, out);
    else
      convolve<1>(rows, kernels, l.features, true, width, out);
  }

  // What the padding by reflection took from a row is pulled by the places it was put as well.
  void fold(int64_t y, int c, float* out) const {
    const float* sets[3][3] = {{dz_[0], dz_[1], dz_[2]}, {}, {}};
    int count = 1;
    auto at = [&](int64_t row) { return dz_[row - y + 1]; };
    if (y == mirrored_first(l.height)) {
      const float* above[3] = {zeros_, zeros_, at(0)};
      std::copy(above, above + 3, sets[count++]);
    }
    if (y == mirrored_last(l.height)) {
      const float* below[3] = {at(l.height - 1), zeros_, zeros_};
      std::copy(below, below + 3, sets[count++]);
    }
    for (int s = 0; s < count; ++s) {
      if (s > 0) {
        expanded_vector(sets[s], c, tile_.width, 0, folded_);
        for (int64_t p = 0; p < tile_.width; ++p) accumulate(out + p * kLanes, load(folded_ + p * kLanes));
      }
      column(sets[s], c, -1, mirrored_first(l.width), out);
      column(sets[s], c, l.width, mirrored_last(l.width), out);
    }
  }

  void column(const float* const* dz, int c, int64_t beyond, int64_t mirrored, float* out) const {
    if (mirrored < tile_.left || mirrored >= tile_.right()) return;
    // One pixel beyond the image lies at most two beyond the tile: of the three columns that its
    // neighbourhood covers only the one inside the image pulls.
    const int64_t inside = beyond < 0 ? 0 : l.width - 1;
    const int j = beyond < 0 ? 2 : 0;
    float* to = out + (mirrored - tile_.left) * kLanes;
    const int step = (l.paired ? 2 : 1) * l.features;
    for (int i = 0; i < 3; ++i)
      accumulate(to, load(dz[i] + c * line_ + (inside - tile_.left + 1) * kLanes) *
                         load(l.spatial + c + (8 - (i * 3 + j)) * step));
  }

  void finish(int64_t y, const float* expanded) {
    const int64_t width = tile_.width, vector = width * kLanes;
    const Layout layout = in_scratch(width);
    const int64_t at = (image_ * l.height + y) * l.width + tile_.left;
    const float* x = l.x + at * l.channels;
    if (l.normalised) {
      normalise(x, width, l.channels, ones(), zeros(), plain_, layout, 0, scales_);
      for (int c = 0; c < l.channels; c += kLanes)
        for (int64_t i = c * width; i < c * width + vector; i += kLanes)
          store(in_ + i, load(plain_ + i) * load(l.weight + c) + load(l.bias + c));
    }
    if (l.dense) {
      const float* taps[9];
      for (int i = 0; i < 9; ++i) taps[i] = dz_[i / 3] + i % 3 * kLanes;
      product<End::kWrite>(taps, 9, width, l.features, in_scratch(line_), t.dense3x3.data(), l.channels,
                           din_, layout);
    } else {
      for (int c = 0; c < l.expanded; c += kLanes) {
        float* de = de_ + c * width;
        expanded_vector(dz_.data(), c, width, 0, de);
        if (l.reflect) fold(y, c, de);
        if (!l.clipped()) continue;
        const float* e = expanded + c * (wide_.width + 2) + (shift() + 1) * kLanes;
        for (int64_t i = 0; i < vector; i += kLanes) {
          const V v = load(e + i);
          V pull = v > splat(0) ? load(de + i) : V{};
          store(de + i, v < splat(6) ? pull : V{});
        }
      }
      outer(l.normalised ? in_ : x, l.channels, l.normalised ? layout : in_image(l.channels), de_,
            l.expanded, layout, width, sums_.expand);
      const float* from = de_;
      product<End::kWrite>(&from, 1, width, l.expanded, layout, t.expand.data(), l.channels, din_, layout);
    }
    float* to = dx_ + at * l.channels;
    const float* more = residual_ ? residual_ + at * l.channels : nullptr;
    for (int64_t p = 0; p < width; ++p, to += l.channels) {
      V mean{}, along{};
      if (l.normalised) {
        for (int c = 0; c < l.channels; c += kLanes) {
          const V pull = load(din_ + c * width + p * kLanes), n = load(plain_ + c * width + p * kLanes);
          accumulate(sums_.weight + c, pull * n);
          accumulate(sums_.bias + c, pull);
          mean += pull * load(l.weight + c);
          along += pull * load(l.weight + c) * n;
        }
        mean = splat(total(mean) / l.channels);
        along = splat(total(along) / l.channels);
      }
      for (int c = 0; c < l.channels; c += kLanes) {
        V pull = load(din_ + c * width + p * kLanes);
        if (l.normalised)
          pull = (pull * load(l.weight + c) - mean - load(plain_ + c * width + p * kLanes) * along) *
                 splat(scales_[p]);
        if (more) pull += load(more + p * l.channels + c);
        store(to + c, pull);
      }
    }
  }

  const float* ones() const { return constant(1.0f); }
  const float* zeros() const { return constant(0.0f); }
  const float* constant(float value) const {
    thread_local std::vector<float> lines[2];
    auto& line = lines[value != 0.0f];
    if (int(line.size()) < l.channels) line.assign(l.channels, value);
    return line.data();
  }

  const Local& l;
  const Transposed& t;
  const int64_t image_;
  const Tile tile_, wide_;
  const int64_t line_;
  const Gradients sums_;
  float* const dx_;
  const float* const residual_;
  float *zeros_ = nullptr, *de_ = nullptr, *folded_ = nullptr, *in_ = nullptr, *plain_ = nullptr,
        *din_ = nullptr, *scales_ = nullptr;
  std::array<float*, 3> dz_{};
};

}  // namespace jaxfuse
