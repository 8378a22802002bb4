// The kernels over matrices that a row holds, of every table that this processor can run, against loops written here.
#include "kernels.h"

namespace {

void test_matmul(const Kernels& k) {
  for (const size_t outer : {1, 3})
    for (const size_t m : {1, 2, 5})
      for (const size_t depth : {1, 4, 19})
        for (const size_t n : {1, 3, 16, 33})
          for (const int transposed : {0, 1})
            for (const int shared : {0, 1, 2}) {
              const size_t rows = 7;
              const Matrix a(rows, outer * m * depth), b(rows, outer * depth * n);
              Matrix out(rows, outer * m * n, false);
              const Rows left = shared == 2 ? a.broadcast() : a.view(), right = shared == 1 ? b.broadcast() : b.view();
              const MatmulArgs args{rows, outer, m, depth, n, transposed, left, right, out.out()};
              k.matmul(&args);
              compare(std::string(k.isa) + " matmul", out, [&](size_t r, size_t i) {
                const size_t o = i / (m * n), line = i / n % m, column = i % n;
                double total = 0;
                for (size_t j = 0; j < depth; ++j) {
                  const size_t at = transposed ? column * depth + j : j * n + column;
                  total += static_cast<double>(value(left, r, (o * m + line) * depth + j)) *
                           static_cast<double>(value(right, r, o * depth * n + at));
                }
                return total;
              });
            }
}

void test_arrange(const Kernels& k) {
  const struct {
    const char* what;
    Arrangement order;
  } cases[] = {
      {" repeat", {2, 3, 1, 5, 5, 0, 0, 0, 10}},
      {" repeat of single columns", {4, 2, 1, 1, 1, 0, 0, 0, 4}},
      {" transpose", {2, 3, 4, 17, 204, 17, 51, 0, 408}},
      {" transpose of single columns", {1, 3, 4, 1, 12, 1, 3, 0, 12}},
      {" windows beyond both ends", {1, 4, 3, 2, 0, 4, 6, 4, 10}},
  };
  for (const auto& c : cases) {
    const size_t rows = 5;
    const Arrangement& order = c.order;
    const Matrix x(rows, order.width), one(1, order.width);
    for (const bool shared : {false, true}) {
      Matrix out(rows, order.outer * order.m * order.n * order.inner, false);
      const Rows from = shared ? one.broadcast() : x.view();
      k.arrange(rows, &order, from, out.out());
      const auto expected = [&](size_t r, size_t i) {
        const size_t o = i / (order.m * order.n * order.inner), a = i / (order.n * order.inner) % order.m,
                     b = i / order.inner % order.n;
        const auto at = static_cast<int64_t>(o * order.outer_step + a * order.m_step + b * order.n_step) -
                        static_cast<int64_t>(order.before);
        if (at < 0 || at >= static_cast<int64_t>(order.width)) return 0.0;
        return static_cast<double>(value(from, r, static_cast<size_t>(at) + i % order.inner));
      };
      compare(std::string(k.isa) + c.what, out, expected, 0, 0);
    }
  }
}

void test_padding(const Kernels& k) {
  const size_t rows = 6, n_ids = 5;
  std::vector<int32_t> ids(rows * n_ids);
  for (auto& id : ids) id = static_cast<int32_t>(below(3));
  Matrix there(rows, n_ids, false);
  k.present(rows, n_ids, {ids.data(), n_ids}, 1, there.out());
  const auto padded = [&](size_t r, size_t i) { return ids[r * n_ids + i] == 1; };
  compare(
      std::string(k.isa) + " present", there, [&](size_t r, size_t i) { return padded(r, i) ? 0 : 1; }, 0, 0);
  for (const size_t inner : {1, 4, 19}) {
    const Matrix x(rows, n_ids * inner);
    Matrix out(rows, n_ids * inner, false);
    k.mask(rows, n_ids, inner, {ids.data(), n_ids}, 1, -2.5f, x.view(), out.out());
    const auto expected = [&](size_t r, size_t i) { return padded(r, i / inner) ? -2.5 : x.at(r, i); };
    compare(std::string(k.isa) + " mask", out, expected, 0, 0);
  }
}

void test_gru_step(const Kernels& k) {
  const int32_t ids[] = {3, 0, 5, 0, 7};
  for (const size_t hidden : {1, 5, 16, 21})
    for (const bool padded : {false, true})
      for (const bool writes : {false, true}) {
        const size_t rows = std::size(ids);
        const Matrix of_x(rows, 3 * hidden), of_state(rows, 3 * hidden);
        Matrix state(rows, hidden), out(rows, hidden, false);
        const Matrix before = state;
        k.gru_step(rows, hidden, of_x.view(), of_state.view(), {padded ? ids : nullptr, 1}, 0, state.out(),
                   writes ? out.out() : Out{nullptr, 0});
        const auto next = [&](size_t r, size_t i) -> double {
          const auto gate = [&](const Matrix& m, size_t g) { return static_cast<double>(m.at(r, g * hidden + i)); };
          const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
          if (padded && ids[r] == 0) return before.at(r, i);
          const double reset = sigmoid(gate(of_x, 0) + gate(of_state, 0));
          const double update = sigmoid(gate(of_x, 1) + gate(of_state, 1));
          const double fresh = std::tanh(gate(of_x, 2) + reset * gate(of_state, 2));
          return (1 - update) * fresh + update * static_cast<double>(before.at(r, i));
        };
        compare(std::string(k.isa) + " gru state", state, next);
        if (writes)
          compare(std::string(k.isa) + " gru output", out,
                  [&](size_t r, size_t i) { return padded && ids[r] == 0 ? 0 : next(r, i); });
      }
}

void test_norms_of_runs(const Kernels& k) {
  for (const size_t size : {1, 3, 16}) {
    const size_t rows = 4, runs = 5;
    const Matrix x(rows, runs * size), scale(1, size), shift(1, size);
    Matrix together(rows, runs * size, false), unit(rows, runs * size, false);
    k.layer_norm(rows, runs * size, size, 1e-3f, scale.view().data, shift.view().data, x.view(), together.out());
    k.l2_normalize(rows, runs * size, size, 1e-3f, x.view(), unit.out());
    for (size_t run = 0; run < runs; ++run) {
      Matrix part(rows, size), normal(rows, size, false), short_unit(rows, size, false);
      for (size_t r = 0; r < rows; ++r)
        for (size_t i = 0; i < size; ++i) part.at(r, i) = x.at(r, run * size + i);
      k.layer_norm(rows, size, size, 1e-3f, scale.view().data, shift.view().data, part.view(), normal.out());
      k.l2_normalize(rows, size, size, 1e-3f, part.view(), short_unit.out());
      for (size_t r = 0; r < rows; ++r)
        for (size_t i = 0; i < size; ++i) {
          check(same_bits(together.at(r, run * size + i), normal.at(r, i)), std::string(k.isa) + " layer_norm of runs");
          check(same_bits(unit.at(r, run * size + i), short_unit.at(r, i)),
                std::string(k.isa) + " l2_normalize of runs");
        }
    }
  }
}

void test(const Kernels& k) {
  test_matmul(k);
  test_arrange(k);
  test_padding(k);
  test_gru_step(k);
  test_norms_of_runs(k);
}

}  // namespace

int main() {
  with_each_table(test);
  return finish();
}
