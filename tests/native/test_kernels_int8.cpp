// Products in 8 bits: every table gives the bits that the definition in backend.h gives in plain scalar code, whatever
// rows they are computed with, and whether x lies in memory or is made on the way.
#include "kernels.h"

namespace {

struct Shape {
  size_t groups, n, k;
};

// As backend.h defines it, without addends or activation.
class Plain {
 public:
  Plain(const std::vector<float>& w, const Shape& s) : s_(s), q_(w.size()), scale_(s.groups * s.n) {
    for (size_t j = 0; j < scale_.size(); ++j) {
      float largest = 0;
      for (size_t i = 0; i < s.k; ++i) largest = std::max(largest, std::abs(w[j * s.k + i]));
      scale_[j] = largest / 127.0f;
      const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
      for (size_t i = 0; i < s.k; ++i) q_[j * s.k + i] = static_cast<int32_t>(std::nearbyint(w[j * s.k + i] * inverse));
    }
  }

  // Column j of a row whose group's columns of x are given.
  float operator()(const float* x, size_t j, float bias) const {
    float least = 0, largest = 0;
    for (size_t i = 0; i < s_.k; ++i) {
      if (!std::isfinite(x[i])) return kNaN;
      least = std::min(least, x[i]), largest = std::max(largest, x[i]);
    }
    const float range = largest - least, inverse = range > 1e-30f ? 255.0f / range : 0.0f;
    const auto zero = static_cast<int32_t>(std::nearbyint(-least * inverse));
    int32_t sum = 0;
    for (size_t i = 0; i < s_.k; ++i) {
      // One addition rounds to the whole number and moves by `zero`, as the kernels do it.
      const float shift = 12582912.0f + static_cast<float>(zero);
      const float moved = std::min(x[i] * inverse + shift, 12582912.0f + 255.0f) - 12582912.0f;
      sum += (static_cast<int32_t>(moved) - zero) * q_[j * s_.k + i];
    }
    return static_cast<float>(sum) * (scale_[j] * (range / 255.0f)) + bias;
  }

 private:
  Shape s_;
  std::vector<int32_t> q_;
  std::vector<float> scale_;
};

std::vector<float> uniforms(size_t n) {
  std::vector<float> made(n);
  for (float& f : made) f = uniform();
  return made;
}

struct Packed {
  Packed(const Kernels& k, const std::vector<float>& w, const Shape& s)
      : memory(k.int8.packed_bytes(s.groups, s.n, s.k) + 1), data(memory.data()) {
    const size_t bytes = memory.size() - 1;
    data[bytes] = '?';
    k.int8.pack(w.data(), s.groups, s.n, s.k, data);
    check(data[bytes] == '?', std::string(k.isa) + " pack of 8 bits wrote beyond packed_bytes");
  }
  Aligned<char> memory;
  char* data;
};

AffineArgs arguments(const Shape& s, const Rows& x, Matrix& out) {
  AffineArgs args = {};
  args.rows = out.rows, args.groups = s.groups, args.n = s.n, args.k = s.k;
  args.x = x;
  args.out = out.out();
  return args;
}

bool equal(const Matrix& a, const Matrix& b, size_t first = 0) {
  for (size_t r = 0; r < a.rows; ++r)
    for (size_t j = 0; j < a.width; ++j)
      if (!same_bits(a.at(r, j), b.at(first + r, j))) return false;
  return true;
}

void test_case(const Kernels& k, const Shape& s, size_t rows, bool positive, bool with_bias) {
  const std::string what = std::string(k.isa) + " 8 bits, rows=" + std::to_string(rows) +
                           " groups=" + std::to_string(s.groups) + " n=" + std::to_string(s.n) +
                           " k=" + std::to_string(s.k);
  const size_t width = s.groups * s.n;
  Matrix x(rows, s.groups * s.k);
  for (size_t r = 0; r < rows; ++r)
    for (size_t i = 0; i < x.width; ++i)
      if (positive && x.at(r, i) < 0) x.at(r, i) = 0;
  const std::vector<float> w = uniforms(width * s.k), bias = uniforms(width);
  const Packed packed(k, w, s);
  const Plain plain(w, s);

  Matrix out(rows, width, false);
  AffineArgs args = arguments(s, x.view(), out);
  args.bias = with_bias ? bias.data() : nullptr;
  args.activation = rows % 2 ? Activation::relu : Activation::none;
  k.int8.affine(&args, packed.data, nullptr);
  bool right = true, near = true;
  for (size_t r = 0; r < rows; ++r)
    for (size_t j = 0; j < width; ++j) {
      const float* group = x.view().data + r * x.stride + j / s.n * s.k;
      const float sum = plain(group, j, with_bias ? bias[j] : -0.0f);
      right = right && same_bits(out.at(r, j), rows % 2 ? std::max(0.0f, sum) : sum);
      double exact = with_bias ? bias[j] : 0, length = 0;
      for (size_t i = 0; i < s.k; ++i) {
        exact += static_cast<double>(group[i]) * static_cast<double>(w[j * s.k + i]);
        length += std::abs(static_cast<double>(group[i]));
      }
      // Half a step of x (2 / 255 wide at most) for each weight, half a step of the weight (1 / 127) for each x.
      near = near && std::abs(sum - exact) <= static_cast<double>(s.k) / 254 + length / 254 + 1e-4;
    }
  check(right, what + ": not the bits of the definition");
  check(near, what + ": further from the exact product than two roundings");
  check(out.guards_hold(), what + ": wrote outside of its columns");

  // The same rows alone, gathered, and with addends and a smooth activation.
  for (size_t count : {1, 2, 3, 5, 7, 14, 15}) {
    if (count > rows) break;
    const size_t first = below(rows - count + 1);
    Matrix part(count, width, false);
    AffineArgs some = args;
    some.rows = count, some.x = x.view(first), some.out = part.out();
    k.int8.affine(&some, packed.data, nullptr);
    check(equal(part, out, first), what + ": the bits depend on the number of rows");
  }
  if (rows == 0) return;
  const std::vector<uint32_t> pick = picks(rows, rows);
  Matrix request(1, width), items(rows, width), added(rows, width, false), sums(rows, width, false);
  const Rows addends[] = {request.broadcast(), items.gathered(pick), items.view()};
  AffineArgs more = arguments(s, x.gathered(pick), added);
  more.bias = args.bias;
  more.addends = addends, more.n_addends = 1 + rows % 3, more.activation = Activation::tanh;
  k.int8.affine(&more, packed.data, nullptr);
  AffineArgs product = arguments(s, x.gathered(pick), sums);
  k.int8.affine(&product, packed.data, nullptr);
  compare(what + " with addends", added, [&](size_t r, size_t j) {
    double sum = sums.at(r, j) + (with_bias ? bias[j] : 0);
    for (size_t a = 0; a < more.n_addends; ++a) sum += value(addends[a], r, j);
    return std::tanh(sum);
  });
}

// Rows of a catalogue in an encoding.
class Stored {
 public:
  Stored(const Kernels& k, const Matrix& from, Encoding encoding)
      : encoding_(encoding), row_bytes_(4 * from.width + 4), bytes_(from.rows * row_bytes_) {
    if (encoding != Encoding::f32) {
      k.encode(from.rows, from.width, from.view(), {bytes_.data(), stride(), encoding, scales()});
      return;
    }
    for (size_t r = 0; r < from.rows; ++r)
      std::memcpy(bytes_.data() + r * row_bytes_, from.view(r).data, 4 * from.width);
  }
  Rows gathered(const std::vector<uint32_t>& pick) {
    return {reinterpret_cast<const float*>(bytes_.data()), stride(), pick.data(), encoding_, scales()};
  }

 private:
  size_t stride() const { return row_bytes_ / (encoding_ == Encoding::f32 ? 4 : encoding_ == Encoding::f16 ? 2 : 1); }
  float* scales() { return reinterpret_cast<float*>(bytes_.data() + row_bytes_ - 4); }
  Encoding encoding_;
  size_t row_bytes_;
  Aligned<char> bytes_;
};

// relu(request + item) made on the way equals the same read from memory.
void test_source(const Kernels& k, const Shape& s, size_t rows, Activation fn, Encoding encoding, size_t n_addends) {
  const size_t width = s.groups * s.k, after = 20;
  const std::vector<uint32_t> pick = picks(rows + after, 40);
  const std::vector<float> w = uniforms(s.groups * s.n * s.k), slope = uniforms(width), bias = uniforms(width);
  const Matrix request(1, width), items(40, width);
  Stored stored(k, items, encoding);
  Rows addends[] = {request.broadcast(), stored.gathered(pick), items.gathered(pick)};
  for (Rows& addend : addends)
    if (addend.gather != nullptr) addend.rows_after = after;
  Matrix x(rows, width, false), read(rows, s.groups * s.n, false), made(rows, s.groups * s.n, false);
  AffineArgs source = {};
  source.rows = rows, source.groups = 1, source.n = width;
  source.bias = bias.data(), source.addends = addends, source.n_addends = n_addends;
  source.activation = fn, source.alpha = 0.3f, source.slope = slope.data();
  source.out = x.out();
  k.fp32.affine(&source);
  source.out = {};
  const Packed packed(k, w, s);
  const AffineArgs from_memory = arguments(s, x.view(), read), on_the_way = arguments(s, {}, made);
  k.int8.affine(&from_memory, packed.data, nullptr);
  k.int8.affine(&on_the_way, packed.data, &source);
  check(equal(made, read), std::string(k.isa) + " 8 bits: x made on the way, k=" + std::to_string(s.k) + " encoding " +
                               std::to_string(static_cast<int>(encoding)));
  check(made.guards_hold(), std::string(k.isa) + " 8 bits: x made on the way wrote outside of its columns");
}

void test_not_finite(const Kernels& k) {
  const Shape s = {2, 20, 24};
  Matrix x(20, 48), out(20, 40, false);
  x.at(3, 5) = kNaN, x.at(4, 6) = -kNaN, x.at(9, 30) = kInf, x.at(10, 31) = -kInf;
  for (size_t i = 0; i < 48; ++i) x.at(15, i) = 1e-38f, x.at(16, i) = 0, x.at(17, i) = i % 2 ? 3e38f : -3e38f;
  std::vector<float> w = uniforms(40 * 24), bias = uniforms(40);
  w[24 * 7 + 3] = kNaN, w[24 * 8 + 3] = kInf;
  for (size_t i = 0; i < 24; ++i) w[24 * 9 + i] = 0;
  const Packed packed(k, w, s);
  AffineArgs args = arguments(s, x.view(), out);
  args.bias = bias.data();
  k.int8.affine(&args, packed.data, nullptr);
  for (size_t r = 0; r < 20; ++r)
    for (size_t j = 0; j < 40; ++j) {
      const bool bad_x = j < 20 ? r == 3 || r == 4 : r == 9 || r == 10;
      const bool bad_w = j == 7 || j == 8, overflows = r == 17;
      const std::string what =
          std::string(k.isa) + " 8 bits, not finite: row " + std::to_string(r) + " column " + std::to_string(j);
      check(std::isnan(out.at(r, j)) == (bad_x || bad_w || overflows), what);
      if ((r == 15 || r == 16 || j == 9) && !bad_w && !bad_x && !overflows)
        check(out.at(r, j) == bias[j], what + ": nothing but bias");
    }
}

void test_int8(const Kernels& k) {
  const Shape shapes[] = {{1, 1, 1},   {1, 17, 3},  {2, 33, 40},   {3, 64, 128},  {4, 1, 64}, {1, 100, 7},
                          {8, 32, 32}, {5, 16, 16}, {1, 129, 900}, {2, 50, 2048}, {1, 32, 0}};
  size_t turn = 0;
  for (const Shape& s : shapes)
    for (size_t rows : {0, 1, 2, 3, 5, 6, 13, 14, 40}) {
      if (s.n * s.k > 20000 && rows > 14) continue;
      test_case(k, s, rows, turn % 2 == 0, turn % 3 == 0);
      ++turn;
    }
  test_case(k, {1, 400, 1500}, 20, true, true);  // more weights than are passed over at once
  for (const Activation fn : {Activation::relu, Activation::prelu, Activation::sigmoid, Activation::none})
    for (const Shape& s : {Shape{8, 32, 64}, Shape{1, 40, 50}, Shape{3, 33, 17}})
      for (const Encoding encoding : {Encoding::f32, Encoding::f16, Encoding::i8})
        for (size_t n_addends : {2, 3}) test_source(k, s, 37, fn, encoding, n_addends);
  test_not_finite(k);
}

}  // namespace

int main() {
  with_each_table(test_int8);
  return finish();
}
