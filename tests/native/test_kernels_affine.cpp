// The affine kernel of every table against a double reference, and the promise that a row's bits do not depend on the
// rows it is computed with.
#include "kernels.h"

namespace {

struct Affine {
  size_t groups, n, k;
  bool has_x, bias;
  int addends;  // of kinds in turn: a row each, broadcast, gathered
  Activation fn;
  bool zeros = false;  // many in x: how many differs from row to row
};

struct AffineData {
  static constexpr size_t kItems = 50;
  Affine c;
  size_t rows;
  Matrix x, per_row, request, items;
  std::vector<float> w, bias, slope;
  Aligned<float> memory;
  float* packed = nullptr;
  std::vector<uint32_t> pick;

  AffineData(const Kernels& k, const Affine& c_, size_t rows_)
      : c(c_),
        rows(rows_),
        x(rows_, c_.groups * c_.k),
        per_row(rows_, c_.groups * c_.n),
        request(1, c_.groups * c_.n),
        items(kItems, c_.groups * c_.n),
        w(c_.groups * c_.n * c_.k),
        bias(c_.groups * c_.n),
        slope(c_.groups * c_.n),
        pick(picks(rows_, kItems)) {
    for (auto* v : {&w, &bias, &slope})
      for (auto& f : *v) f = uniform();
    for (size_t r = 0; c.zeros && r < rows; ++r)
      for (size_t i = 0; i < x.width; ++i)  // of an odd number of rows most have none
        if (below(6) < (rows % 2 == 0 ? r % 7 : r % 5 == 4 ? 6 : 0))
          x.at(r, i) = i % 3 == 0 ? -0.0f : i % 17 == 1 ? -1e-45f : 0.0f;    // times w: -0
    for (size_t j = 0; c.zeros && j < bias.size(); j += 3) bias[j] = -0.0f;  // see positive_zero
    const size_t floats = k.fp32.packed_bytes(c.groups, c.n, c.k) / sizeof(float);
    memory = Aligned<float>(floats + 1);
    packed = memory.data();
    packed[floats] = kUntouched;
    k.fp32.pack(w.data(), c.groups, c.n, c.k, packed);
    check(packed[floats] == kUntouched, std::string(k.isa) + " pack wrote beyond packed_bytes");
  }

  std::vector<Rows> addends(size_t first) const {
    std::vector<Rows> all;
    for (int a = 0; a < c.addends; ++a)
      all.push_back(a % 3 == 0 ? request.broadcast() : a % 3 == 1 ? items.gathered(pick, first) : per_row.view(first));
    return all;
  }

  // Rows first .. first + out.rows.
  void run(const Kernels& k, size_t first, Matrix& out, const Rows* other_x = nullptr,
           const void* halves = nullptr, bool by_add = false) const {
    const std::vector<Rows> added = addends(first);
    AffineArgs args = {};
    args.rows = out.rows, args.groups = c.groups, args.n = c.n, args.k = c.k;
    if (c.has_x) args.x = other_x ? *other_x : x.view(first), args.packed = packed;
    args.bias = c.bias ? bias.data() : nullptr;
    args.addends = added.data(), args.n_addends = added.size();
    args.activation = c.fn, args.alpha = 0.2f, args.slope = slope.data();
    args.out = out.out();
    if (halves) args.packed = halves;
    (by_add ? k.add : halves ? k.fp16.affine : k.fp32.affine)(&args);
  }

  // The sum before activation, and the sum of the terms' sizes.
  double sum(const Rows& source, const std::vector<Rows>& added, size_t r, size_t column, double* size) const {
    const size_t g = column / c.n;
    double total = 0;
    const auto add = [&](double term) { total += term, *size += std::abs(term); };
    for (size_t i = 0; c.has_x && i < c.k; ++i)
      add(static_cast<double>(value(source, r, g * c.k + i)) * static_cast<double>(w[column * c.k + i]));
    if (c.bias) add(bias[column]);
    for (const auto& a : added) add(value(a, r, column));
    return total;
  }
};

std::string describe(const Kernels& k, const Affine& c, size_t rows) {
  char text[160];
  std::snprintf(text, sizeof text, "%s affine rows=%zu groups=%zu n=%zu k=%zu x=%d%s bias=%d addends=%d %s", k.isa,
                rows, c.groups, c.n, c.k, c.has_x, c.zeros ? " with zeros" : "", c.bias, c.addends,
                kActivations[static_cast<size_t>(c.fn)].name);
  return text;
}

void test_affine_case(const Kernels& k, const Affine& c, size_t rows) {
  const AffineData data(k, c, rows);
  const std::string what = describe(k, c, rows);
  Matrix out(rows, c.groups * c.n, false);
  data.run(k, 0, out);
  bool right = true;
  const Rows source = data.x.view();
  const std::vector<Rows> added = data.addends(0);
  for (size_t r = 0; right && r < rows; ++r)
    for (size_t j = 0; right && j < out.width; ++j) {
      double size = 0;
      const double sum = data.sum(source, added, r, j, &size);
      const double want = activated(c.fn, sum, 0.2f, data.slope[j]);
      const double steepness = c.fn == Activation::exp ? want : 1.2;
      right = close(out.at(r, j), want,
                    6e-8 * (4 + std::sqrt(static_cast<double>(c.k))) * size * steepness + 4e-7 * (1 + std::abs(want)));
      if (!right) std::printf("row %zu column %zu is %.9g, expected %.9g\n", r, j, out.at(r, j), want);
    }
  check(right, what);
  check(out.guards_hold(), what + ": wrote outside of its columns");
  if (!c.has_x) {
    Matrix sums(rows, out.width, false);
    data.run(k, 0, sums, nullptr, nullptr, true);
    bool equal = sums.guards_hold();
    for (size_t r = 0; r < rows; ++r)
      for (size_t j = 0; j < out.width; ++j) equal = equal && same_bits(sums.at(r, j), out.at(r, j));
    check(equal, what + ": add() gives something else");
  }
  if (rows == 0) return;

  // The bits of rows first .. first + count, computed alone.
  bool same = true;
  for (size_t count : {1, 2, 3, 4, 5, 6, 7, 11, 14, 15, 40}) {
    if (count > rows) break;
    const size_t first = below(rows - count + 1);
    Matrix part(count, out.width, false);
    data.run(k, first, part);
    for (size_t r = 0; r < count; ++r)
      for (size_t j = 0; j < out.width; ++j) same = same && same_bits(part.at(r, j), out.at(first + r, j));
  }
  check(same, what + ": the bits depend on the number of rows");

  if (!c.has_x) return;  // x by broadcast and by gather
  const Matrix table(7, data.x.width);
  const std::vector<uint32_t> pick = picks(rows, 7);
  for (const Rows& other : {table.broadcast(), table.gathered(pick)}) {
    Matrix all(rows, out.width, false), one(1, out.width, false);
    data.run(k, 0, all, &other);
    const size_t r = below(rows);
    const Rows single = {other.data + (other.gather ? other.gather[r] : 0) * other.stride, 1, nullptr};
    data.run(k, r, one, &single);
    bool equal = true;
    for (size_t j = 0; j < out.width; ++j) equal = equal && same_bits(one.at(0, j), all.at(r, j));
    check(equal, what + ": x by broadcast or gather");
  }
}

void test_affine(const Kernels& k) {
  const struct {
    size_t groups, n, k;
  } shapes[] = {{1, 1, 1},    {1, 17, 3},    {1, 32, 64},   {2, 33, 40},  {3, 8, 136}, {4, 1, 64},
                {1, 100, 7},  {1, 64, 530},  {2, 50, 1030}, {8, 128, 32}, {1, 5, 0},   {5, 16, 16},
                {1, 300, 16}, {1, 129, 900}, {2, 230, 70},  {1, 257, 130}};
  size_t turn = 0;
  for (const auto& s : shapes)
    for (size_t rows : {0, 1, 2, 3, 4, 5, 6, 7, 13, 14, 64, 129}) {
      if (s.n * s.k > 20000 && rows > 64) continue;
      for (int variant = 0; variant < 2; ++variant, ++turn)  // 11 is not in step with 2; exp comes below
        test_affine_case(k,
                         {s.groups, s.n, s.k, true, turn % 3 != 0, static_cast<int>(turn % 5),
                          kActivations[turn % 11].fn, variant == 1},
                         rows);
    }
  for (size_t rows : {64, 65}) test_affine_case(k, {2, 64, 48, true, true, 0, Activation::none, true}, rows);
  for (const auto& a : kActivations)
    for (size_t width : {1, 3, 40, 2048})
      for (int addends : {1, 2, 3, 6}) test_affine_case(k, {1, width, 4, false, addends % 2 == 0, addends, a.fn}, 33);

  // NaN and infinity reach exactly the row they are in.
  const Affine c = {2, 20, 24, true, true, 0, Activation::relu};
  AffineData data(k, c, 20);
  data.x.at(3, 5) = kNaN;
  data.x.at(9, 30) = kInf;
  Matrix out(20, 40, false);
  data.run(k, 0, out);
  for (size_t r = 0; r < 20; ++r)
    for (size_t j = 0; j < 40; ++j) {
      const bool nan = r == 3 && j < 20, infinite = r == 9 && j >= 20;
      const float want = data.w[j * 24 + 6] > 0 ? kInf : 0;
      check(nan        ? std::isnan(out.at(r, j))
            : infinite ? out.at(r, j) == want
                       : std::isfinite(out.at(r, j)),
            std::string(k.isa) + " affine: NaN or infinity in x");
    }
}

// The nearest half, ties to even.
float as_half(float x) {
  if (x == 0) return x;
  const float step = std::ldexp(1.0f, std::max(std::ilogb(x), -14) - 10);
  return std::nearbyint(x / step) * step;
}

std::vector<uint8_t> in_halves(const Kernels& k, const std::vector<float>& w, size_t groups, size_t n, size_t columns) {
  std::vector<uint8_t> packed(k.fp16.packed_bytes(groups, n, columns));
  k.fp16.pack(w.data(), groups, n, columns, packed.data());
  return packed;
}

// x = 1 gives back the weights as they were rounded.
void test_half_precision(const Kernels& k) {
  std::vector<float> w = {0.0f, -0.0f, 65504, -65504, 65519, 6.1e-5f, 5.9e-8f, 2.98e-8f, 2.99e-8f, -1e-9f, 1e-40f};
  for (int exponent = -26; exponent < 15; ++exponent)
    for (int i = 0; i < 200; ++i) {
      const float size = std::ldexp(1 + static_cast<float>(below(2048)) / 2048, exponent);  // ties among them
      w.push_back(i % 2 == 0 ? size : -std::nextafter(size, i % 4 == 1 ? 1e9f : 0.0f));
    }
  const size_t n = w.size();
  const std::vector<uint8_t> packed = in_halves(k, w, 1, n, 1);
  Matrix x(1, 1), out(1, n, false);
  x.at(0, 0) = 1;
  AffineArgs args = {};
  args.rows = 1, args.groups = 1, args.n = n, args.k = 1;
  args.x = x.view(), args.packed = packed.data(), args.out = out.out();
  k.fp16.affine(&args);
  for (size_t j = 0; j < n; ++j)
    check(out.at(0, j) == as_half(w[j]), std::string(k.isa) + " half precision of " + std::to_string(w[j]));
}

// Weights that are halves already give the same bits in either precision.
void test_affine_half(const Kernels& k) {
  for (const Affine& c :
       {Affine{2, 50, 70, true, true, 1, Activation::relu, true}, Affine{1, 129, 33, true, false, 0, Activation::none},
        Affine{3, 8, 600, true, true, 2, Activation::tanh}})
    for (size_t rows : {1, 3, 40}) {
      AffineData data(k, c, rows);
      for (float& w : data.w) w = as_half(w);
      const std::vector<uint8_t> packed = in_halves(k, data.w, c.groups, c.n, c.k);
      k.fp32.pack(data.w.data(), c.groups, c.n, c.k, data.packed);
      Matrix full(rows, c.groups * c.n, false), half(rows, c.groups * c.n, false);
      data.run(k, 0, full);
      data.run(k, 0, half, nullptr, packed.data());
      bool same = true;
      for (size_t r = 0; r < rows; ++r)
        for (size_t j = 0; j < full.width; ++j) same = same && same_bits(full.at(r, j), half.at(r, j));
      check(same, describe(k, c, rows) + ": half precision");
    }
}

}  // namespace

int main() {
  with_each_table(test_affine);
  with_each_table(test_half_precision);
  with_each_table(test_affine_half);
  return finish();
}
