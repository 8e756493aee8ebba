// CrossFuse's local work without leaving a core's cache, as XLA calls it. jaxfuse/models/local.py
// calls it; jaxfuse/models/crossfuse.py computes the same by JAX's operations.
//
// Tiles of an image are independent and worked through row by row: a row's pixels are normalised
// and expanded, the last three rows convolved, the result projected or summed at once.

#include "backward.h"
#include "coupling.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace jaxfuse {
namespace {

namespace ffi = xla::ffi;

ffi::Error refused(const Local& l, int64_t outputs = kLanes) {
  if (l.fits && outputs % kLanes == 0) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(
      "numbers of channels must be multiples of 16, paired ones of 64, and those without reflection");
}

// (matrices, in, out): one for all images or one each.
struct Projection {
  int64_t matrices;
  int in, out;
  std::vector<std::vector<float>> ready;

  Projection(Map project, bool transposed)
      : matrices(project.dimensions()[0]),
        in(int(project.dimensions()[1])),
        out(int(project.dimensions()[2])) {
    for (int64_t i = 0; i < matrices; ++i) {
      const float* plain = project.typed_data() + i * in * out;
      ready.push_back(transposed ? packed(out, in, [&](int64_t r, int64_t c) { return plain[c * out + r]; })
                                 : packed(in, out, [&](int64_t r, int64_t c) { return plain[r * out + c]; }));
    }
  }
  const float* of(int64_t image) const { return ready[matrices > 1 ? image : 0].data(); }
};

// features(x) project (+ add).
ffi::Error Bottleneck(ffi::ThreadPool pool, Map x, Map weight, Map bias, Map expand, Map spatial,
                      Map project, Map add, Result y, int64_t activation, int64_t reflect) {
  Local l(x, weight, bias, expand, spatial, activation, reflect);
  if (const auto error = refused(l, project.dimensions()[2]); error.failure()) return error;
  l.filter(true);
  const Projection projection(project, false);
  const bool adds = add.element_count() > 0;
  const auto cut = tiles(l.height, l.width);
  share_out(pool, l.images * int64_t(cut.size()), [&](int64_t i) {
    const Tile& tile = cut[i % cut.size()];
    const int64_t image = i / cut.size(), width = tile.width, room = sweep_floats(l, width);
    const int64_t spare = spare_floats(l, width);
    Scratch scratch(room + width * l.features + spare);
    float* memory = scratch.take(room);
    float* made = scratch.take(width * l.features);
    float* work = scratch.take(spare);
    const Layout in = in_scratch(width), out = in_image(projection.out);
    sweep(l, image, tile, memory, [&](int64_t row, float* const* rows) {
      const int64_t at = ((image * l.height + row) * l.width + tile.left) * projection.out;
      expect<true>(y->typed_data() + at, width * projection.out);
      features(l, rows, width, made, work);
      const float* from = made;
      float* to = y->typed_data() + at;
      if (adds)
        product<End::kAdd>(&from, 1, width, projection.in, in, projection.of(image), projection.out, to,
                           out, add.typed_data() + at);
      else
        product<End::kWrite>(&from, 1, width, projection.in, in, projection.of(image), projection.out,
                             to, out);
    });
  });
  return ffi::Error::Success();
}

void write_gradients(const Local& l, const Groups& groups, Result weight, Result bias, Result expand,
                     Result spatial) {
  const int64_t c = l.channels, e = l.dense ? 0 : c * l.expanded;
  if (l.normalised) {
    groups.add_up(0, groups.count, 0, c, weight->typed_data());
    groups.add_up(0, groups.count, c, c, bias->typed_data());
  }
  groups.add_up(0, groups.count, 2 * c, e, expand->typed_data());
  groups.add_up(0, groups.count, 2 * c + e, l.taps(), spatial->typed_data());
}

// Given the gradient of Bottleneck's result: those of x (plus that gradient if `residual`), of the
// weights, and of `project`.
ffi::Error BottleneckBackward(ffi::ThreadPool pool, Map x, Map weight, Map bias, Map expand,
                              Map spatial, Map project, Map pull, Result dx, Result dweight,
                              Result dbias, Result dexpand, Result dspatial, Result dproject,
                              int64_t activation, int64_t reflect, int64_t residual) {
  const Local l(x, weight, bias, expand, spatial, activation, reflect);
  if (const auto error = refused(l, project.dimensions()[2]); error.failure()) return error;
  const Transposed transposed(l);
  const Projection projection(project, true);
  const int in = projection.in, out = projection.out;
  const auto cut = tiles(l.height, l.width);
  const int64_t own = Gradients::size(l), wide = kTileSide + 4;
  Groups groups(l, cut.size(), own + in * out);
  groups.run(pool, cut, [&](int64_t image, const Tile& tile, float* sums) {
    Scratch scratch(BackwardTile::floats(l) + wide * (2 * in + 2 * kLanes));
    const Tile seen = widened(l, tile);
    const int64_t width = seen.width, vector = width * kLanes, line = (tile.width + 2) * kLanes;
    float* made = scratch.take(width * in);
    float* dmade = scratch.take(width * in);
    float* room = scratch.take(2 * vector);
    BackwardTile backward(l, transposed, image, tile, sums, dx->typed_data(),
                          residual ? pull.typed_data() : nullptr);
    backward.run(scratch, [&](int64_t y, float* const* rows, float* dz) {
      const float* g = pull.typed_data() + ((image * l.height + y) * l.width + seen.left) * out;
      product<End::kWrite>(&g, 1, width, out, in_image(out), projection.of(image), in, dmade,
                           in_scratch(width));
      if (l.dense) local_dense(l, rows, width + 2, width, made);
      for (int o = 0; o < in; o += kLanes) {
        float* const m = made + o * width;
        const float* const dm = dmade + o * width;
        float* const to = dz + o / kLanes * line;
        if (!l.dense) local_vector(l, rows, width + 2, width, o, m);
        if (l.activation == kGatedGelu) {
          local_vector(l, rows, width + 2, width, o + in, room);
          for (int64_t i = 0; i < vector; i += kLanes) {
            const V gate = load(m + i), value = load(room + i), d = load(dm + i);
            const V below = below_normal(gate);
            store(m + i, gate * below * value);
            store(to + i, d * value * (below + gate * normal_density(gate)));
            store(to + in / kLanes * line + i, d * gate * below);
          }
        } else if (l.activation == kRelu6) {
          for (int64_t i = 0; i < vector; i += kLanes) {
            const V v = load(m + i), d = v > splat(0) ? load(dm + i) : V{};
            store(m + i, clip6(v));
            store(to + i, v < splat(6) ? d : V{});
          }
        } else {
          std::memcpy(to, dm, 4 * vector);
        }
      }
      if (y >= tile.top && y < tile.bottom()) {
        const int64_t shift = tile.left - seen.left;
        outer(made + shift * kLanes, in, in_scratch(width), g + shift * out, out, in_image(out),
              tile.width, sums + own);
      }
    });
  });
  write_gradients(l, groups, dweight, dbias, dexpand, dspatial);
  for (int64_t i = 0; i < projection.matrices; ++i) {
    const bool each = projection.matrices > 1;
    groups.add_up(each ? i * groups.per_image : 0, each ? (i + 1) * groups.per_image : groups.count, own,
                  in * out, dproject->typed_data() + i * in * out);
  }
  return ffi::Error::Success();
}

constexpr int kHead = 8;

// Element `d` of each head, of which `own` holds one or two, in all the head's lanes. `row` is a row
// of pixels in scratch layout, `own` channels c .. of its pixel p.
inline V of_head(V own, const float* row, int64_t width, int64_t p, int c, int d) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8);
  return (V)_mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(d)), (__m512)own);
#else
  const int at = c / kHead * kHead + d;
  return splat(row[at / kLanes * kLanes * width + p * kLanes + at % kLanes]);
#endif
}

// Adds q k^T of each head, (8 of q, half of k), then the squares of q and of k, over a row.
void add_sums(const float* qk, int64_t width, int half, float* sums) {
  for (int c = 0; c < half; c += kLanes) {
    V products[kHead], q_squares{}, k_squares{};
    for (auto& p : products) p = V{};
    for (int64_t p = 0; p < width; ++p) {
      const V q = load(qk + c * width + p * kLanes), k = load(qk + (half + c) * width + p * kLanes);
      q_squares += q * q;
      k_squares += k * k;
#pragma GCC unroll 8
      for (int d = 0; d < kHead; ++d) products[d] += of_head(q, qk, width, p, c, d) * k;
    }
    for (int d = 0; d < kHead; ++d) accumulate(sums + d * half + c, products[d]);
    accumulate(sums + kHead * half + c, q_squares);
    accumulate(sums + (kHead + 1) * half + c, k_squares);
  }
}

// Sums over the pixels, each times its mask, of features(x) = (q, k): q k^T of each head,
// (b, heads, 8, 8), and squares (b, 2 c).
ffi::Error Sums(ffi::ThreadPool pool, Map x, Map weight, Map bias, Map expand, Map spatial, Map mask,
                Result products, Result squares) {
  Local l(x, weight, bias, expand, spatial, kNone, 0);
  if (const auto error = refused(l); error.failure()) return error;
  l.filter(true);
  const int half = l.features / 2;
  const int64_t size = (kHead + 2) * half;
  const auto cut = tiles(l.height, l.width);
  Groups groups(l, cut.size(), size);
  groups.run(pool, cut, [&](int64_t image, const Tile& tile, float* sums) {
    const int64_t width = tile.width, room = sweep_floats(l, width);
    const int64_t spare = spare_floats(l, width);
    Scratch scratch(room + width * l.features + spare);
    float* memory = scratch.take(room);
    float* made = scratch.take(width * l.features);
    float* work = scratch.take(spare);
    sweep(l, image, tile, memory, [&](int64_t row, float* const* rows) {
      features(l, rows, width, made, work);
      if (mask.element_count() > 0)
        for (int64_t p = 0; p < width; ++p) {
          const V m = splat(mask.typed_data()[row * l.width + tile.left + p]);
          for (int c = 0; c < l.features; c += kLanes) {
            float* at = made + c * width + p * kLanes;
            // Whatever lies outside the mask, NaN as well, counts as nothing.
            store(at, m != splat(0) ? load(at) * m : V{});
          }
        }
      add_sums(made, width, half, sums);
    });
  });
  std::vector<float> sum(size);
  for (int64_t image = 0; image < l.images; ++image) {
    groups.add_up(image * groups.per_image, (image + 1) * groups.per_image, 0, size, sum.data());
    float* to = products->typed_data() + image * kHead * half;
    for (int c = 0; c < half; ++c)
      for (int d = 0; d < kHead; ++d)
        to[(c / kHead * kHead + d) * kHead + c % kHead] = sum[d * half + c];
    std::memcpy(squares->typed_data() + image * 2 * half, sum.data() + kHead * half, 8 * half);
  }
  return ffi::Error::Success();
}

// Given the gradients of Sums' results (without a mask): those of x and of the weights.
ffi::Error SumsBackward(ffi::ThreadPool pool, Map x, Map weight, Map bias, Map expand, Map spatial,
                        Map products, Map squares, Result dx, Result dweight, Result dbias,
                        Result dexpand, Result dspatial) {
  const Local l(x, weight, bias, expand, spatial, kNone, 0);
  if (const auto error = refused(l); error.failure()) return error;
  const Transposed transposed(l);
  const int half = l.features / 2;
  const auto cut = tiles(l.height, l.width);
  const int64_t wide = kTileSide + 4;
  Groups groups(l, cut.size(), Gradients::size(l));
  groups.run(pool, cut, [&](int64_t image, const Tile& tile, float* sums) {
    // pulls[d][c]: what element d of a channel's head on the other side does to it.
    Scratch scratch(BackwardTile::floats(l) + wide * l.features + 2 * kHead * half);
    float* to_q = scratch.take(kHead * half);
    float* to_k = scratch.take(kHead * half);
    const float* given = products.typed_data() + image * kHead * half;
    for (int c = 0; c < half; ++c)
      for (int d = 0; d < kHead; ++d) {
        to_q[d * half + c] = given[c * kHead + d];
        to_k[d * half + c] = given[(c / kHead * kHead + d) * kHead + c % kHead];
      }
    const float* twice = squares.typed_data() + image * 2 * half;
    const Tile seen = widened(l, tile);
    const int64_t width = seen.width, line = (tile.width + 2) * kLanes;
    float* qk = scratch.take(width * l.features);
    BackwardTile backward(l, transposed, image, tile, sums, dx->typed_data(), nullptr);
    backward.run(scratch, [&](int64_t, float* const* rows, float* dz) {
      features(l, rows, width, qk, nullptr);
      for (int c = 0; c < half; c += kLanes)
        for (int64_t p = 0; p < width; ++p) {
          const V q = load(qk + c * width + p * kLanes), k = load(qk + (half + c) * width + p * kLanes);
          V dq = 2.0f * load(twice + c) * q, dk = 2.0f * load(twice + half + c) * k;
#pragma GCC unroll 8
          for (int d = 0; d < kHead; ++d) {
            dq += load(to_q + d * half + c) * of_head(k, qk + half * width, width, p, c, d);
            dk += load(to_k + d * half + c) * of_head(q, qk, width, p, c, d);
          }
          store(dz + c / kLanes * line + p * kLanes, dq);
          store(dz + (half + c) / kLanes * line + p * kLanes, dk);
        }
    });
  });
  write_gradients(l, groups, dweight, dbias, dexpand, dspatial);
  return ffi::Error::Success();
}

ffi::Error Coupling(ffi::ThreadPool pool, Map x, Map mix, Map bias, Map e1, Map s1, Map p1, Map e2, Map s2,
                    Map p2, Map e3, Map s3, Map p3, Result y) {
  const Node node(x, mix, bias, e1, s1, p1, e2, s2, p2, e3, s3, p3);
  const auto cut = tiles(node.height, node.width);
  share_out(pool, node.images * int64_t(cut.size()), [&](int64_t i) {
    NodeTile(node, i / cut.size(), cut[i % cut.size()], y->typed_data()).run();
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxfuse

using Map = jaxfuse::Map;
namespace ffi = xla::ffi;

#define JAXFUSE_LOCAL ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxfuse_bottleneck, jaxfuse::Bottleneck,
                              JAXFUSE_LOCAL.Arg<Map>().Arg<Map>().Ret<Map>().Attr<int64_t>("activation").Attr<int64_t>("reflect"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxfuse_bottleneck_backward, jaxfuse::BottleneckBackward,
                              JAXFUSE_LOCAL.Arg<Map>().Arg<Map>()
                                  .Ret<Map>().Ret<Map>().Ret<Map>().Ret<Map>().Ret<Map>().Ret<Map>()
                                  .Attr<int64_t>("activation").Attr<int64_t>("reflect").Attr<int64_t>("residual"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxfuse_sums, jaxfuse::Sums, JAXFUSE_LOCAL.Arg<Map>().Ret<Map>().Ret<Map>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxfuse_sums_backward, jaxfuse::SumsBackward,
                              JAXFUSE_LOCAL.Arg<Map>().Arg<Map>().Ret<Map>().Ret<Map>().Ret<Map>().Ret<Map>().Ret<Map>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxfuse_coupling, jaxfuse::Coupling,
                              JAXFUSE_LOCAL.Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>().Arg<Map>().Ret<Map>());
