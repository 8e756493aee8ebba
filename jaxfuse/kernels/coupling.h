// A coupling node: z = x mix + bias; z2 += phi(z1); z1 = z1 exp(rho(z2)) + eta(z2), where phi, rho and
// eta are 1x1, ReLU6, depthwise 3x3 by reflection, ReLU6, 1x1.
#pragma once

#include "local.h"

namespace jaxfuse {

struct Node {
  int64_t images, height, width;
  int channels, half, hidden;
  const float *x, *bias, *first3x3;
  std::vector<float> mix, expand1, project1, expand2, taps2, rho, eta;  // rho's and eta's side by side

  Node(Map image, Map mixes, Map offset, Map e1, Map s1, Map p1, Map e2, Map s2, Map p2, Map e3, Map s3,
       Map p3)
      : images(image.dimensions()[0]),
        height(image.dimensions()[1]),
        width(image.dimensions()[2]),
        channels(int(image.dimensions()[3])),
        half(channels / 2),
        hidden(int(e1.dimensions()[1])),
        x(image.typed_data()),
        bias(offset.typed_data()),
        first3x3(s1.typed_data()),
        mix(plain(mixes)),
        expand1(plain(e1)),
        project1(plain(p1)),
        expand2(packed(half, 2 * hidden,
                       [&](int64_t i, int64_t j) {
                         const float* from = (j < hidden ? e2 : e3).typed_data();
                         return from[i * hidden + j % hidden];
                       })),
        rho(plain(p2)),
        eta(plain(p3)) {
    for (int i = 0; i < 9; ++i)
      for (const Map& map : {s2, s3})
        taps2.insert(taps2.end(), map.typed_data() + i * hidden, map.typed_data() + (i + 1) * hidden);
  }

  static std::vector<float> plain(Map m) {
    const int64_t n = m.dimensions()[1];
    return packed(m.dimensions()[0], n, [&](int64_t i, int64_t j) { return m.typed_data()[i * n + j]; });
  }
};

class NodeTile {
 public:
  NodeTile(const Node& node, int64_t image, const Tile& tile, float* y)
      : n(node), tile_(tile), x_(node.x + image * at(node.height, 0)), y_(y + image * at(node.height, 0)) {}

  void run() {
    const int64_t line = tile_.width + 4;
    Scratch scratch(line * (6 * n.channels + 12 * n.hidden + n.channels));
    for (int i = 0; i < 3; ++i) {
      z_[i] = scratch.take(line * n.channels);
      second_[i] = scratch.take(line * n.half);
      e1_[i] = scratch.take(line * n.hidden);
      e2_[i] = scratch.take(line * 2 * n.hidden);
    }
    made_ = scratch.take(line * 2 * n.hidden);
    exponent_ = scratch.take(line * n.half);
    // Row y of z, then row y - 1 of the new z2, which needs it, then row y - 2 of the new z1.
    const int64_t last = std::min(tile_.bottom() + 2, n.height);
    for (int64_t y = std::max<int64_t>(tile_.top - 2, 0); y < tile_.bottom() + 2; ++y) {
      if (y < last) mixed(y);
      const int64_t s = y - 1;
      if (s >= std::max<int64_t>(tile_.top - 1, 0) && s < std::min(tile_.bottom() + 1, n.height)) second(s);
      if (y - 2 >= tile_.top) first(y - 2);
    }
  }

 private:
  struct Span {
    int64_t from, to;
    int64_t size() const { return to - from; }
  };
  int64_t at(int64_t y, int64_t column) const { return (y * n.width + column) * n.channels; }
  // Columns of the tile and so many to either side, within the image.
  Span span(int64_t more) const {
    return {std::max<int64_t>(tile_.left - more, 0), std::min(tile_.right() + more, n.width)};
  }
  Layout lines() const { return in_scratch(tile_.width + 4); }
  int64_t place(int64_t column) const { return (column - tile_.left + 2) * kLanes; }

  // What the 3x3 reads for row y; rows beyond the image are those that they mirror.
  void around(float* const* ring, int64_t y, const float** rows) const {
    for (int i = 0; i < 3; ++i) {
      const int64_t row = y + i - 1;
      const int64_t there = row < 0 ? mirrored_first(n.height) : row == n.height ? mirrored_last(n.height) : row;
      rows[i] = ring[there % 3];
    }
  }
  void reflect(float* row, int depth) const {
    for (int c = 0; c < depth; c += kLanes) {
      float* line = row + c / kLanes * lines().vector;
      if (tile_.left <= 1) store(line + place(-1), load(line + place(mirrored_first(n.width))));
      if (tile_.right() >= n.width - 1) store(line + place(n.width), load(line + place(mirrored_last(n.width))));
    }
  }
  // ReLU6(3x3(expanded)) of the columns, in the layout of lines.
  void filtered(float* const* ring, int64_t y, const float* kernel, int depth, Span columns) const {
    const float* rows[3];
    around(ring, y, rows);
    for (int c = 0; c < depth; c += kLanes) {
      const int64_t line = c / kLanes * lines().vector;
      const float* from[1][3];
      for (int i = 0; i < 3; ++i) from[0][i] = rows[i] + line + place(columns.from - 1);
      const float* kernels[1] = {kernel + c};
      float* to = made_ + line + place(columns.from);
      convolve<1>(from, kernels, depth, false, columns.size(), to);
      for (int64_t i = 0; i < columns.size() * kLanes; i += kLanes) store(to + i, clip6(load(to + i)));
    }
  }

  void mixed(int64_t y) {
    const Span columns = span(2);
    const float* from = x_ + at(y, columns.from);
    float* z = z_[y % 3] + place(columns.from);
    expect(from + n.width * n.channels, columns.size() * n.channels);
    product<End::kBias>(&from, 1, columns.size(), n.channels, in_image(n.channels), n.mix.data(), n.channels,
                        z, lines(), n.bias);
    from = z;
    float* e = e1_[y % 3];
    product<End::kClip>(&from, 1, columns.size(), n.half, lines(), n.expand1.data(), n.hidden,
                        e + place(columns.from), lines());
    reflect(e, n.hidden);
  }

  void second(int64_t y) {
    const Span columns = span(1);
    const int64_t start = place(columns.from);
    filtered(e1_, y, n.first3x3, n.hidden, columns);
    const float* from = made_ + start;
    float* z2 = second_[y % 3] + start;
    product<End::kAdd>(&from, 1, columns.size(), n.hidden, lines(), n.project1.data(), n.half, z2, lines(),
                       z_[y % 3] + n.half / kLanes * lines().vector + start);
    from = z2;
    float* e = e2_[y % 3];
    product<End::kClip>(&from, 1, columns.size(), n.half, lines(), n.expand2.data(), 2 * n.hidden, e + start,
                        lines());
    reflect(e, 2 * n.hidden);
  }

  void first(int64_t y) {
    const Span columns = span(0);
    const int64_t start = place(columns.from);
    float* const to = y_ + at(y, columns.from);
    expect<true>(to, columns.size() * n.channels);
    filtered(e2_, y, n.taps2.data(), 2 * n.hidden, columns);
    const float* from = made_ + start;
    product<End::kWrite>(&from, 1, columns.size(), n.hidden, lines(), n.rho.data(), n.half, exponent_, lines());
    const float* z1 = z_[y % 3] + start;
    const float* z2 = second_[y % 3] + start;
    for (int c = 0; c < n.half; c += kLanes)
      for (int64_t p = 0; p < columns.size(); ++p) {
        float* e = exponent_ + c / kLanes * lines().vector + p * kLanes;
        store(e, load(z1 + c / kLanes * lines().vector + p * kLanes) * exponential(load(e)));
        store(to + p * n.channels + n.half + c, load(z2 + c / kLanes * lines().vector + p * kLanes));
      }
    // The sum with eta needs both in one layout.
    from = made_ + start + n.hidden / kLanes * lines().vector;
    product<End::kAdd>(&from, 1, columns.size(), n.hidden, lines(), n.eta.data(), n.half, exponent_, lines(),
                       exponent_);
    for (int c = 0; c < n.half; c += kLanes)
      for (int64_t p = 0; p < columns.size(); ++p)
        store(to + p * n.channels + c, load(exponent_ + c / kLanes * lines().vector + p * kLanes));
  }

  const Node& n;
  const Tile tile_;
  const float* const x_;
  float* const y_;
  float *z_[3], *second_[3], *e1_[3], *e2_[3], *made_ = nullptr, *exponent_ = nullptr;
};

}  // namespace jaxfuse
