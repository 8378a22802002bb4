// Every kernel but affine, of every table that this processor can run, against a double reference written here, on
// random and on degenerate shapes.
#include "kernels.h"

namespace {

double ulp(double x) {
  const float f = std::min(static_cast<float>(std::abs(x)), std::nextafter(std::numeric_limits<float>::max(), 0.0f));
  return static_cast<double>(std::nextafter(f, kInf)) - static_cast<double>(f);
}

enum class Measure { ulps, absolute, per_size };  // per_size: absolute error over max(1, |x|)

// Over floats spread through the bit patterns of the whole range, both signs.
void test_accuracy(const Kernels& k) {
  const struct {
    Activation fn;
    Measure measure;
    double limit;
  } cases[] = {{Activation::exp, Measure::ulps, 2},           {Activation::elu, Measure::ulps, 3},
               {Activation::sigmoid, Measure::ulps, 4},       {Activation::sigmoid, Measure::absolute, 1e-7},
               {Activation::tanh, Measure::ulps, 3},          {Activation::silu, Measure::per_size, 2e-7},
               {Activation::gelu, Measure::per_size, 1.5e-7}, {Activation::gelu_tanh, Measure::per_size, 1.5e-7},
               {Activation::softplus, Measure::ulps, 3},      {Activation::selu, Measure::ulps, 3},
               {Activation::mish, Measure::per_size, 3e-7},   {Activation::hard_sigmoid, Measure::ulps, 2},
               {Activation::hard_swish, Measure::ulps, 4},    {Activation::softsign, Measure::ulps, 2},
               {Activation::log, Measure::ulps, 2},           {Activation::sqrt, Measure::ulps, 1}};
  std::vector<float> x;
  for (uint64_t b = 0; b < 0xffffffffull; b += 40009) {
    const auto pattern = static_cast<uint32_t>(b);
    float f;
    std::memcpy(&f, &pattern, sizeof f);
    if (std::isfinite(f)) x.push_back(f);
  }
  for (int i = 0; i < 40000; ++i) x.push_back(uniform() * 20), x.push_back(uniform() * 110);
  std::vector<float> y(x.size());
  for (const auto& c : cases) {
    k.activation(1, x.size(), c.fn, 1.0f, nullptr, {x.data(), x.size(), nullptr}, {y.data(), y.size()});
    double worst = 0;
    float at = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = activated(c.fn, x[i], 1, 0);
      if (std::isnan(want) && std::isnan(y[i])) continue;  // there is no logarithm and no root of it
      double error = std::abs(y[i] - want);
      if (std::abs(want) > std::numeric_limits<float>::max() && std::isinf(y[i])) error = 0;
      if (c.measure == Measure::ulps) error /= ulp(want);
      if (c.measure == Measure::per_size) error /= std::max(1.0, std::abs(static_cast<double>(x[i])));
      if (!(error <= worst)) worst = error, at = x[i];
    }
    const char* name = kActivations[static_cast<size_t>(c.fn)].name;
    std::printf("  %-10s largest error %.3g %s, at %.9g\n", name, worst, c.measure == Measure::ulps ? "ulp" : "", at);
    check(worst <= c.limit, std::string(k.isa) + " accuracy of " + name);
  }
  const float special[] = {0,     -0.0f,  kInf,   -kInf,  kNaN,    1e-40f,  -1e-40f,
                           3e38f, -3e38f, 88.72f, 88.73f, -103.9f, -104.1f, 0.625f};
  const size_t n = std::size(special);
  for (const auto& a : kActivations) {
    float out[n];
    const std::vector<float> slope(n, 0.25f);
    k.activation(1, n, a.fn, 0.5f, slope.data(), {special, n, nullptr}, {out, n});
    for (size_t i = 0; i < n; ++i) {
      const double want = activated(a.fn, special[i], 0.5, 0.25);
      check(close(out[i], want, 4e-7 * std::abs(want) + 1e-43),
            std::string(k.isa) + " " + a.name + " of " + std::to_string(special[i]) + " is " + std::to_string(out[i]));
    }
  }
}

void test_activation(const Kernels& k) {
  for (const auto& a : kActivations)
    for (size_t width : {1, 2, 3, 5, 8, 9, 16, 31, 64})
      for (size_t rows : {0, 1, 2, 70, 300}) {
        const Matrix x(rows, width);
        Matrix out(rows, width, false);
        std::vector<float> slope(width);
        for (auto& s : slope) s = uniform();
        k.activation(rows, width, a.fn, 0.3f, a.fn == Activation::prelu ? slope.data() : nullptr, x.view(), out.out());
        compare(std::string(k.isa) + " activation " + a.name, out,
                [&](size_t r, size_t i) { return activated(a.fn, x.at(r, i), 0.3, slope[i]); });
      }
}

// ---- the others ---------------------------------------------------------------------------------------------------

void test_softmax(const Kernels& k) {
  for (size_t size : {1, 2, 3, 8, 15, 16, 17, 40, 100})
    for (size_t runs : {1, 3}) {
      Matrix x(9, size * runs), out(9, size * runs, false);
      for (auto& v : x.data)
        if (v != kUntouched) v *= 30;
      x.at(1, 0) = 1e30f;
      if (size > 1) x.at(2, size - 1) = kNaN, x.at(3, 0) = -kInf;
      k.softmax(9, size * runs, size, x.view(), out.out());
      compare(std::string(k.isa) + " softmax of " + std::to_string(size), out, [&](size_t r, size_t i) {
        const size_t first = i / size * size;
        double top = -kInf, total = 0;
        for (size_t j = first; j < first + size; ++j) top = std::max(top, static_cast<double>(x.at(r, j)));
        for (size_t j = first; j < first + size; ++j) total += std::exp(x.at(r, j) - top);
        return std::exp(x.at(r, i) - top) / total;
      });
    }
}

void test_mixture(const Kernels& k) {
  for (size_t width : {1, 5, 16, 64, 130})
    for (size_t n : {1, 2, 8}) {
      const size_t rows = 11;
      const Matrix gate(rows, n), request(1, width), items(30, width);
      const std::vector<uint32_t> pick = picks(rows, 30);
      std::vector<Matrix> own;
      std::vector<Rows> experts;
      for (size_t e = 0; e < n; ++e) own.emplace_back(rows, width);
      for (size_t e = 0; e < n; ++e)
        experts.push_back(e == 2 ? request.broadcast() : e == 4 ? items.gathered(pick) : own[e].view());
      Matrix out(rows, width, false);
      k.mixture(rows, width, n, gate.view(), experts.data(), out.out());
      compare(std::string(k.isa) + " mixture", out, [&](size_t r, size_t i) {
        double total = 0;
        for (size_t e = 0; e < n; ++e) total += static_cast<double>(gate.at(r, e)) * value(experts[e], r, i);
        return total;
      });
    }
}

void test_elementwise(const Kernels& k) {
  const std::string isa = k.isa;
  for (size_t width : {1, 3, 8, 20, 65}) {
    const size_t rows = 7;
    Matrix a(rows, width), b(rows, width);
    a.at(0, 0) = kNaN, b.at(1, 0) = kNaN, b.at(2, 0) = 0;
    const Matrix one(rows, 1);
    const auto apply = [](Binary fn, double u, double v) {
      if ((fn == Binary::max || fn == Binary::min) && (std::isnan(u) || std::isnan(v)))
        return static_cast<double>(kNaN);
      switch (fn) {
        case Binary::add:
          return u + v;
        case Binary::sub:
          return u - v;
        case Binary::mul:
          return u * v;
        case Binary::div:
          return u / v;
        case Binary::max:
          return std::max(u, v);
        default:
          return std::min(u, v);
      }
    };
    for (int f = 0; f < 6; ++f) {
      const auto fn = static_cast<Binary>(f);
      const struct {
        Rows a, b;
        bool a_scalar, b_scalar;
      } forms[] = {{a.view(), b.view(), false, false},
                   {one.view(), b.view(), true, false},
                   {a.view(), one.broadcast(), false, true}};
      for (const auto& form : forms) {
        Matrix out(rows, width, false);
        k.binary(rows, width, fn, form.a, form.a_scalar, form.b, form.b_scalar, out.out());
        compare(isa + " binary " + std::to_string(f), out, [&](size_t r, size_t i) {
          return apply(fn, value(form.a, r, form.a_scalar ? 0 : i), value(form.b, r, form.b_scalar ? 0 : i));
        });
      }
    }
    const std::vector<uint32_t> pick = picks(rows, rows);
    Matrix scaled(rows, width, false), copied(rows, width, false), spread(rows, width, false);
    k.scale_shift(rows, width, a.gathered(pick), b.view().data, b.view(3).data, scaled.out());
    compare(isa + " scale_shift", scaled, [&](size_t r, size_t i) {
      return static_cast<double>(a.at(pick[r], i)) * static_cast<double>(b.at(0, i)) + static_cast<double>(b.at(3, i));
    });
    k.copy(rows, width, a.gathered(pick), copied.out());
    k.copy(rows, width, b.broadcast(), spread.out());
    bool same = copied.guards_hold() && spread.guards_hold();
    for (size_t r = 0; r < rows; ++r)
      for (size_t i = 0; i < width; ++i)
        same = same && same_bits(copied.at(r, i), a.at(pick[r], i)) && same_bits(spread.at(r, i), b.at(0, i));
    check(same, isa + " copy");
  }
  // int32 columns go through copy unchanged, whatever float their bits would be.
  std::vector<int32_t> ids(37), moved(37);
  for (auto& i : ids) i = static_cast<int32_t>(random_bits());
  ids[5] = 0x7f800001;  // a signalling NaN
  const auto* from = reinterpret_cast<const float*>(ids.data());
  k.copy(1, 37, {from, 37, nullptr}, {reinterpret_cast<float*>(moved.data()), 37});
  check(ids == moved, isa + " copy of int32");
}

void test_reductions(const Kernels& k) {
  const std::string isa = k.isa;
  for (size_t outer : {1, 3})
    for (size_t axis : {1, 2, 5, 33})
      for (size_t inner : {1, 2, 16, 21})
        for (int f = 0; f < 3; ++f) {
          Matrix x(6, outer * axis * inner), out(6, outer * inner, false);
          x.at(2, (axis - 1) * inner) = kNaN;
          k.reduce(6, outer, axis, inner, static_cast<Reduce>(f), x.view(), out.out());
          compare(isa + " reduce " + std::to_string(f), out, [&](size_t r, size_t i) {
            double total = f == 2 ? -kInf : 0;
            for (size_t a = 0; a < axis; ++a) {
              const double v = x.at(r, (i / inner * axis + a) * inner + i % inner);
              total = f != 2 ? total + v : std::isnan(v) || std::isnan(total) ? kNaN : std::max(total, v);
            }
            return f == 1 ? total / static_cast<double>(axis) : total;
          });
        }
  for (size_t width : {1, 4, 17, 64, 200}) {
    Matrix x(5, width), y(5, width);
    const Matrix scale(1, width), shift(1, width);
    for (size_t i = 0; i < width; ++i) x.at(0, i) = 0, x.at(1, i) += 1000;
    x.at(4, 0) = kNaN;
    Matrix normal(5, width, false), plain(5, width, false), unit(5, width, false), products(5, 1, false);
    k.layer_norm(5, width, width, 1e-5f, scale.view().data, shift.view().data, x.view(), normal.out());
    k.layer_norm(5, width, width, 1e-5f, nullptr, nullptr, x.view(), plain.out());
    k.l2_normalize(5, width, width, 1e-12f, x.view(), unit.out());
    k.dot(5, width, x.view(), y.view(), products.out());
    const auto normalized = [&](size_t r, size_t i) {
      double mean = 0, variance = 0;
      for (size_t j = 0; j < width; ++j) mean += x.at(r, j) / static_cast<double>(width);
      for (size_t j = 0; j < width; ++j)
        variance += (x.at(r, j) - mean) * (x.at(r, j) - mean) / static_cast<double>(width);
      return (x.at(r, i) - mean) / std::sqrt(variance + static_cast<double>(1e-5f));
    };
    compare(
        isa + " layer_norm", normal,
        [&](size_t r, size_t i) {
          return normalized(r, i) * static_cast<double>(scale.at(0, i)) + static_cast<double>(shift.at(0, i));
        },
        1e-5, 3e-4);
    compare(isa + " layer_norm without weights", plain, normalized, 1e-5, 3e-4);
    compare(isa + " l2_normalize", unit, [&](size_t r, size_t i) {
      double square = 0;
      for (size_t j = 0; j < width; ++j) square += static_cast<double>(x.at(r, j)) * static_cast<double>(x.at(r, j));
      return std::isnan(square) ? kNaN : x.at(r, i) / std::max(std::sqrt(square), 1e-12);
    });
    compare(
        isa + " dot", products,
        [&](size_t r, size_t) {
          double total = 0;
          for (size_t j = 0; j < width; ++j) total += static_cast<double>(x.at(r, j)) * static_cast<double>(y.at(r, j));
          return total;
        },
        1e-5, 2e-4);
  }
}

void test_tables(const Kernels& k) {
  const std::string isa = k.isa;
  const size_t vocabulary = 40;
  for (size_t dim : {1, 4, 16, 33, 100})
    for (size_t n_ids : {1, 3, 50})
      for (size_t rows : {0, 1, 9}) {
        std::vector<float> table(vocabulary * dim);
        for (auto& v : table) v = uniform();
        std::vector<int32_t> ids(rows * (n_ids + 2), -7);
        for (size_t r = 0; r < rows; ++r)
          for (size_t i = 0; i < n_ids; ++i)
            ids[r * (n_ids + 2) + i] = r == 1 || i % 4 == 2 ? 0 : static_cast<int32_t>(below(vocabulary));
        const IdRows view = {ids.data(), n_ids + 2};
        for (int64_t padding : {-1, 0}) {
          const auto there = [&](size_t r, size_t i) { return ids[r * (n_ids + 2) + i] != padding; };
          const auto entry = [&](size_t r, size_t i, size_t d) {
            return static_cast<double>(table[static_cast<size_t>(ids[r * (n_ids + 2) + i]) * dim + d]);
          };
          Matrix out(rows, n_ids * dim, false);
          const EmbeddingTable looked_up = {table.data(), dim, TableEncoding::f32, nullptr, nullptr};
          k.embedding(rows, n_ids, view, padding, &looked_up, out.out());
          compare(
              isa + " embedding", out,
              [&](size_t r, size_t i) { return there(r, i / dim) ? entry(r, i / dim, i % dim) : 0; }, 0, 0);
          for (int mode = 0; mode < 3; ++mode) {
            Matrix bag(rows, dim, false);
            k.embedding_bag(rows, n_ids, view, padding, static_cast<Pooling>(mode), &looked_up, bag.out());
            compare(
                isa + " embedding_bag " + std::to_string(mode), bag,
                [&](size_t r, size_t d) {
                  double total = 0;
                  size_t count = 0;
                  for (size_t i = 0; i < n_ids; ++i)
                    if (there(r, i)) {
                      total = mode == 2 && count > 0 ? std::max(total, entry(r, i, d))
                              : mode == 2            ? entry(r, i, d)
                                                     : total + entry(r, i, d);
                      ++count;
                    }
                  return mode == 1 && count > 0 ? total / static_cast<double>(count) : total;
                },
                2e-6, 3e-6);
          }
        }
      }
}

void test_fuse(const Kernels& k) {
  const uint32_t columns[] = {2, 0, 3};
  const float weights[] = {1.0f, 0.5f, -0.25f}, offsets[] = {0, 0.1f, 1e-3f};
  for (size_t rows : {0, 1, 3, 16, 37})
    for (int product : {0, 1}) {
      Matrix scores(rows, 4);
      for (size_t r = 0; r < rows; ++r)
        for (size_t t = 0; t < 4; ++t) scores.at(r, t) = (scores.at(r, t) + 1) / 2;
      if (rows > 5)
        scores.at(1, 2) = 0, scores.at(2, 0) = kNaN, scores.at(3, 2) = -1, scores.at(4, 2) = kInf,
                     scores.at(5, 2) = 1e-9f;
      Matrix fused(1, rows, false);
      k.fuse(rows, 3, columns, weights, offsets, product, scores.view().data, scores.stride, fused.out().data);
      compare(
          std::string(k.isa) + " fuse", fused,
          [&](size_t, size_t r) {
            double total = 0;
            for (size_t t = 0; t < 3; ++t) {
              const double p = scores.at(r, columns[t]), shifted = p + static_cast<double>(offsets[t]);
              total += static_cast<double>(weights[t]) * (!product        ? p
                                                          : std::isnan(p) ? kNaN
                                                                          : std::log(std::max(shifted, 1e-12)));
            }
            return product ? std::exp(total) : total;
          },
          6e-6, 1e-6);
      Matrix alone(1, 1, false);
      bool same = true;
      for (size_t r = 0; r < rows; ++r) {
        k.fuse(1, 3, columns, weights, offsets, product, scores.view(r).data, scores.stride, alone.out().data);
        same = same && same_bits(alone.at(0, 0), fused.at(0, r));
      }
      check(same, std::string(k.isa) + " fuse: the bits depend on the number of rows");
    }
}

void test(const Kernels& k) {
  std::printf("%s, %zu lanes\n", k.isa, k.vector_floats);
  test_accuracy(k);
  test_activation(k);
  test_softmax(k);
  test_mixture(k);
  test_elementwise(k);
  test_reductions(k);
  test_tables(k);
  test_fuse(k);
}

}  // namespace

int main() {
  with_each_table(test);
  return finish();
}
