// Rows in fewer bits: what encode() makes of numbers, what copy and affine read from it, and the stated error bounds.
#include "kernels.h"

namespace {

// By the definition of binary16.
double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double size = exponent == 0    ? std::ldexp(fraction, -24)
                      : exponent == 31 ? (fraction == 0 ? double{kInf} : double{kNaN})
                                       : std::ldexp(1024 + fraction, exponent - 25);
  return h >> 15 ? -size : size;
}

// A table in an encoding, rows apart as in a catalogue, with guards between them.
struct Encoded {
  Encoding encoding;
  size_t width, row_bytes, scale_at;
  std::vector<unsigned char> data;

  Encoded(Encoding encoding_, size_t rows, size_t width_)
      : encoding(encoding_),
        width(width_),
        row_bytes(encoding_ == Encoding::f16 ? (width_ + 1) / 2 * 4 : (width_ + 3) / 4 * 4 + 8),
        scale_at((width_ + 3) / 4 * 4),
        data(rows * row_bytes, 0xa5) {}

  size_t stride() const { return encoding == Encoding::f16 ? row_bytes / 2 : row_bytes; }
  float* scales() { return reinterpret_cast<float*>(data.data() + scale_at); }
  EncodedOut out() { return {data.data(), stride(), encoding, scales()}; }
  Rows view(size_t column = 0) {
    const size_t bytes = column * (encoding == Encoding::f16 ? 2 : 1);
    return {reinterpret_cast<const float*>(data.data() + bytes), stride(), nullptr, encoding, scales()};
  }
  Rows gathered(const std::vector<uint32_t>& pick) {
    Rows rows = view();
    rows.gather = pick.data();
    return rows;
  }
  double decoded(size_t r, size_t i) const {
    const unsigned char* row = data.data() + r * row_bytes;
    if (encoding == Encoding::f16) {
      uint16_t h;
      std::memcpy(&h, row + 2 * i, sizeof h);
      return half_value(h);
    }
    float scale;
    std::memcpy(&scale, row + scale_at, sizeof scale);
    return static_cast<double>(scale) * static_cast<int8_t>(row[i]);
  }
  bool guards_hold() const {
    for (size_t r = 0; r * row_bytes < data.size(); ++r)
      for (size_t i = encoding == Encoding::f16 ? 2 * width : width; i < row_bytes; ++i) {
        const bool scale = encoding == Encoding::i8 && i >= scale_at && i < scale_at + 4;
        if (!scale && data[r * row_bytes + i] != 0xa5) return false;
      }
    return true;
  }
};

void test_every_half(const Kernels& k) {
  std::vector<uint16_t> all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<float> out(all.size());
  const Rows row = {reinterpret_cast<const float*>(all.data()), all.size(), nullptr, Encoding::f16};
  k.copy(1, all.size(), row, {out.data(), out.size()});
  bool right = true, back = true;
  std::vector<float> finite;
  std::vector<uint16_t> expected;
  for (size_t i = 0; i < all.size(); ++i) {
    const double want = half_value(all[i]);
    right = right && (std::isnan(want) ? std::isnan(out[i]) : same_bits(out[i], static_cast<float>(want)));
    if (std::isfinite(want)) finite.push_back(out[i]), expected.push_back(all[i]);
  }
  std::vector<uint16_t> again(finite.size());
  const size_t done = k.encode(1, finite.size(), {finite.data(), finite.size(), nullptr},
                               {again.data(), again.size(), Encoding::f16, nullptr});
  back = done == 1 && again == expected;
  check(right, std::string(k.isa) + " decodes every half");
  check(back, std::string(k.isa) + " encodes every half as it was");

  // Halfway between two neighbours: to the even one. A little to a side: to that one.
  std::vector<float> ties;
  std::vector<uint16_t> nearest;
  for (uint16_t h = 0; h < 0x7bff; ++h) {
    const auto middle = static_cast<float>((half_value(h) + half_value(h + 1)) / 2);
    ties.insert(ties.end(), {middle, std::nextafter(middle, 0.0f), -std::nextafter(middle, kInf)});
    nearest.insert(nearest.end(),
                   {static_cast<uint16_t>(h % 2 == 0 ? h : h + 1), h, static_cast<uint16_t>((h + 1) | 0x8000)});
  }
  std::vector<uint16_t> rounded(ties.size());
  k.encode(1, ties.size(), {ties.data(), ties.size(), nullptr},
           {rounded.data(), rounded.size(), Encoding::f16, nullptr});
  check(rounded == nearest, std::string(k.isa) + " rounds to the nearest half, ties to even");
}

// |decoded - x| is at most 2^-11 |x| in f16, or 2^-25 below the normal numbers; in i8 half the row's scale.
void test_bounds(const Kernels& k) {
  for (const Encoding encoding : {Encoding::f16, Encoding::i8})
    for (size_t width : {1, 2, 3, 7, 8, 15, 16, 17, 33, 100, 2048}) {
      const size_t rows = 9;
      Matrix x(rows, width);
      for (size_t r = 0; r < rows; ++r)
        for (size_t i = 0; i < width; ++i)
          x.at(r, i) = r == 0   ? 0.0f
                       : r == 1 ? 1e-42f
                       : r == 2 ? x.at(r, i) * 65519.0f
                                : std::ldexp(x.at(r, i), static_cast<int>(below(40)) - 28);
      Encoded to(encoding, rows, width);
      const std::string what =
          std::string(k.isa) + (encoding == Encoding::f16 ? " f16 " : " i8 ") + std::to_string(width);
      check(k.encode(rows, width, x.view(), to.out()) == rows, what + " encodes all rows");
      check(to.guards_hold(), what + " wrote outside of its columns");
      for (size_t r = 0; r < rows; ++r) {
        double largest = 0, worst = 0;
        for (size_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(double{x.at(r, i)}));
        for (size_t i = 0; i < width; ++i) {
          const double size = std::abs(double{x.at(r, i)});
          const double bound = encoding == Encoding::f16 ? std::max(std::ldexp(size, -11), std::ldexp(1.0, -25))
                                                         : std::max(largest / 254 * (1 + 1e-5), 1e-30);
          worst = std::max(worst, std::abs(to.decoded(r, i) - double{x.at(r, i)}) / bound);
        }
        check(worst <= 1, what + " row " + std::to_string(r) + ": error " + std::to_string(worst) + " of the bound");
      }
      Matrix out(rows, width, false);
      k.copy(rows, width, to.view(), out.out());
      compare(
          what + " copy", out, [&](size_t r, size_t i) { return to.decoded(r, i); }, 6e-8, 0);
      const std::vector<uint32_t> pick = picks(30, rows);
      for (size_t column : {size_t{0}, width / 2, width - 1}) {
        Matrix part(30, width - column, false);
        Rows from = to.view(column);
        from.gather = pick.data();
        k.copy(30, width - column, from, part.out());
        compare(
            what + " gather", part, [&](size_t r, size_t i) { return to.decoded(pick[r], column + i); }, 6e-8, 0);
      }
    }
}

void test_refusals(const Kernels& k) {
  const struct {
    Encoding encoding;
    float value;
    bool fits;
  } cases[] = {{Encoding::f16, 65519.99f, true}, {Encoding::f16, -65519.99f, true}, {Encoding::f16, 65520.0f, false},
               {Encoding::f16, -1e30f, false},   {Encoding::f16, kNaN, false},      {Encoding::f16, -kInf, false},
               {Encoding::i8, 3e38f, true},      {Encoding::i8, kNaN, false},       {Encoding::i8, kInf, false},
               {Encoding::i8, -kInf, false}};
  for (const auto& c : cases)
    for (size_t column : {0, 5, 18}) {
      Matrix x(4, 19);
      x.at(2, column) = c.value;
      Encoded to(c.encoding, 4, 19);
      check(k.encode(4, 19, x.view(), to.out()) == (c.fits ? 4u : 2u),
            std::string(k.isa) + " encode of " + std::to_string(c.value));
    }
}

// Addends of any encoding, in any order, are what adding the decoded numbers would be.
void test_addends(const Kernels& k) {
  constexpr size_t kItems = 40, kRows = 37, kColumnsOfX = 20, kIdColumns = 3;
  const Encoding all[] = {Encoding::f32, Encoding::f16, Encoding::i8};
  for (size_t width : {1, 5, 16, 40, 130, 2048})
    for (size_t n_addends = 1; n_addends <= 4; ++n_addends)
      for (size_t variant = 0; variant < (n_addends <= 2 ? 9 : 3); ++variant)
        for (const bool has_x : {false, true}) {
          if (has_x && width > 130) continue;
          const std::vector<uint32_t> ids = picks(kRows * kIdColumns, kItems);  // a matrix; one of its columns picks
          std::vector<uint32_t> pick;
          for (size_t r = 0; r < kRows; ++r) pick.push_back(ids[r * kIdColumns + 1]);
          std::vector<Matrix> plain;
          std::vector<Encoded> tables;
          std::vector<Rows> addends, decoded;
          plain.reserve(n_addends), tables.reserve(n_addends);
          for (size_t a = 0; a < n_addends; ++a) {
            const Encoding encoding = all[(a == 0 ? variant : variant / 3 + a) % 3];
            plain.emplace_back(kItems, width);
            tables.emplace_back(encoding == Encoding::f32 ? Encoding::f16 : encoding, kItems, width);
            if (encoding != Encoding::f32) {
              k.encode(kItems, width, plain[a].view(), tables[a].out());
              k.copy(kItems, width, tables[a].view(), plain[a].out());
            }
            decoded.push_back(plain[a].gathered(pick));
            addends.push_back(encoding == Encoding::f32 ? decoded[a] : tables[a].gathered(pick));
            if (a % 2 == 0) addends.back().gather = ids.data() + 1, addends.back().gather_step = kIdColumns;
          }
          const Matrix x(kRows, kColumnsOfX), w(1, width * kColumnsOfX);
          Aligned<uint8_t> memory(k.fp32.packed_bytes(1, width, kColumnsOfX));
          uint8_t* packed = memory.data();
          k.fp32.pack(w.view().data, 1, width, kColumnsOfX, packed);
          AffineArgs args{};
          args.rows = kRows, args.groups = 1, args.n = width, args.k = has_x ? kColumnsOfX : 0;
          if (has_x) args.x = x.view(), args.packed = packed;
          args.n_addends = n_addends;
          args.activation = variant % 2 == 0 ? Activation::relu : Activation::tanh;
          Matrix got(kRows, width, false), want(kRows, width, false);
          args.addends = decoded.data(), args.out = want.out();
          k.fp32.affine(&args);
          args.addends = addends.data(), args.out = got.out();
          k.fp32.affine(&args);
          compare(
              std::string(k.isa) + " affine with encoded addends", got,
              [&](size_t r, size_t i) { return want.at(r, i); }, 1e-6, 1e-6);
        }
}

// Look-ups in tables of every encoding, that begin and end anywhere: nothing beyond a table may be read.
void test_tables(const Kernels& k) {
  constexpr size_t kRows = 23;
  const struct {
    TableEncoding encoding;
    const char* name;
    size_t bits;
  } encodings[] = {{TableEncoding::f16, "f16", 16}, {TableEncoding::u8, "u8", 8}, {TableEncoding::u4, "u4", 4}};
  for (const auto& e : encodings)
    for (size_t dim : {1, 2, 4, 6, 8, 10, 15, 16, 17, 18, 32, 50}) {
      if (dim % 2 == 1 && e.bits == 4) continue;
      const std::string what = std::string(k.isa) + " " + e.name + " of " + std::to_string(dim);
      std::vector<unsigned char> bytes(kRows * dim * e.bits / 8);
      for (auto& b : bytes) b = static_cast<unsigned char>(random_bits());
      if (e.encoding == TableEncoding::f16)
        for (size_t i = 1; i < bytes.size(); i += 2) bytes[i] &= 0xbb;  // finite, below 2
      std::vector<float> scales(kRows), shifts(kRows);
      for (size_t r = 0; r < kRows; ++r) scales[r] = uniform() + 1.5f, shifts[r] = 10 * uniform();
      const auto decoded = [&](size_t r, size_t i) {
        const size_t at = r * dim + i;
        if (e.encoding == TableEncoding::f16) {
          uint16_t h;
          std::memcpy(&h, bytes.data() + 2 * at, sizeof h);
          return half_value(h);
        }
        const int q = e.bits == 8 ? bytes[at] : bytes[at / 2] >> (at % 2 * 4) & 15;
        return double{scales[r]} * q + double{shifts[r]};
      };
      const EmbeddingTable table = {bytes.data(), dim, e.encoding, scales.data(), shifts.data()};
      for (size_t rows : {1, 3, 40})
        for (size_t n_ids : {1, 5})
          for (int64_t padding : {-1, 0}) {
            std::vector<int32_t> ids(rows * n_ids);
            for (auto& id : ids) id = static_cast<int32_t>(below(4) == 0 ? 0 : below(kRows));
            Matrix out(rows, n_ids * dim, false);
            k.embedding(rows, n_ids, {ids.data(), n_ids}, padding, &table, out.out());
            const auto value = [&](size_t r, size_t j, size_t i) {
              const int32_t id = ids[r * n_ids + j];
              return id == padding ? 0 : decoded(static_cast<size_t>(id), i);
            };
            compare(
                what + " embedding", out, [&](size_t r, size_t i) { return value(r, i / dim, i % dim); }, 2e-7, 1e-6);
            Matrix bag(rows, dim, false);
            k.embedding_bag(rows, n_ids, {ids.data(), n_ids}, padding, Pooling::sum, &table, bag.out());
            compare(
                what + " bag", bag,
                [&](size_t r, size_t i) {
                  double total = 0;
                  for (size_t j = 0; j < n_ids; ++j) total += value(r, j, i);
                  return total;
                },
                1e-6, 2e-4);
          }
    }
}

void test_encodings(const Kernels& k) {
  test_tables(k);
  test_every_half(k);
  test_bounds(k);
  test_refusals(k);
  test_addends(k);
}

}  // namespace

int main() {
  with_each_table(test_encodings);
  return finish();
}
