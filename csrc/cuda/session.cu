#include <algorithm>
#include <bit>
#include <cstring>

#include "core/status.h"
#include "cuda/interpreter.cuh"
#include "cuda/session.h"
#include "cuda/top_k.cuh"

namespace fastmtr::device {

namespace {

#if defined(__CUDACC__)
constexpr unsigned kThreads = 256;  // of a block
#else
constexpr unsigned kThreads = 64;  // a fiber each
#endif
constexpr size_t kMostGraphs = 64;
constexpr uint32_t kFewestRows = 16;

// At most a quarter more, so that calls of nearly the same size are of one shape.
uint64_t round_up_shape(uint64_t n) {
  if (n <= 16) return n;
  const uint64_t step = std::bit_floor(n - 1) / 4;
  return (n + step - 1) / step * step;
}

Kernel<ScoreArgs> kernel_of(DevicePrecision precision) {
  switch (precision) {
    case DevicePrecision::fp32:
      break;
    case DevicePrecision::tf32:
      return FMTR_KERNEL_OF(score_candidates<tf32_t>);
    case DevicePrecision::fp16:
      return FMTR_KERNEL_OF(score_candidates<half_t>);
    case DevicePrecision::bf16:
      return FMTR_KERNEL_OF(score_candidates<bf16_t>);
  }
  return FMTR_KERNEL_OF(score_candidates<float>);
}

size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

uint32_t block_bytes() { return kThreads / kWarp * kSumsBytes; }

// ---- items ----------------------------------------------------------------------------------------------------------

Store::Store(const LoadedModel& model, uint64_t capacity) {
  constexpr int item = static_cast<int>(Domain::item);
  row_bytes_ = {model.ids_width[item] * sizeof(int32_t), model.dense_width[item] * sizeof(float)};
  row_bytes_.insert(row_bytes_.end(), model.table_row_bytes.begin(), model.table_row_bytes.end());
  std::vector<const unsigned char*> tables;
  for (const size_t bytes : row_bytes_) {
    matrices_.emplace_back(bytes * capacity);
    if (matrices_.size() > 2) tables.push_back(matrices_.back().data());
  }
  pointers_ = Memory<const unsigned char*>(tables.size());
  stream_.copy_in(pointers_.data(), tables.data(), tables.size() * sizeof tables[0]);
  stream_.wait();
}

// Neighbouring slots go over together.
void Store::write(const DeviceItems& items) {
  for (uint64_t first = 0, n = 0; first < items.n; first += n) {
    for (n = 1; first + n < items.n && items.slots[first + n] == items.slots[first] + n;) ++n;
    for (size_t m = 0; m < row_bytes_.size(); ++m) {
      const size_t at = items.slots[first] * row_bytes_[m], bytes = n * row_bytes_[m];
      if (bytes > 0)
        stream_.copy_in(matrices_[m].data() + at, static_cast<const unsigned char*>(items.sources[m]) + at, bytes);
    }
  }
  stream_.wait();
}

uint64_t Store::bytes() const {
  uint64_t bytes = 0;
  for (const auto& matrix : matrices_) bytes += matrix.size();
  return bytes;
}

// ---- versions of a catalogue ----------------------------------------------------------------------------------------

void Version::set_keys(const int64_t* of_rows) {
  std::vector<KeyEntry> table(std::bit_ceil(2 * n_items + 2), KeyEntry{0, kNoRow});
  for (uint64_t row = 0; row < n_items; ++row) {
    uint64_t at = hash_of(of_rows[row]) & (table.size() - 1);
    while (table[at].slot != kNoRow) at = (at + 1) & (table.size() - 1);
    table[at] = {of_rows[row], slots_here.empty() ? static_cast<uint32_t>(row) : slots_here[row]};
  }
  Memory<KeyEntry> there(table.size());
  Stream stream;
  stream.copy_in(there.data(), table.data(), table.size() * sizeof table[0]);
  stream.wait();
  keys = std::move(there);
}

// ---- calls ----------------------------------------------------------------------------------------------------------

CallSession::CallSession(const LoadedModel& model) : model_(model) {}

Shape CallSession::shape_of(const DeviceCall& call, int32_t output) const {
  Shape shape{};
  shape.output = output;
  shape.requests = round_up_shape(call.n_requests);
  shape.stays = call.results_on_device;
  if (output >= 0) return shape;
  shape.list = call.list;
  shape.whole = call.offsets == nullptr;
  shape.has_slots = call.slots != nullptr;
  shape.has_items = call.device_items != nullptr;
  shape.wants_scores = (call.list ? call.list_scores : call.scores) != nullptr;
  shape.candidates = round_up_shape(call.total);
  shape.k = call.list ? call.k : 0;
  // Small calls go in small tiles, as long as these leave processors idle.
  shape.tile = model_.program.tile_rows;
  while (shape.tile > kFewestRows && shape.candidates < uint64_t{shape.tile} * model_.multiprocessors) shape.tile /= 2;
  if (call.tile > 0) shape.tile = std::min(call.tile, model_.program.tile_rows);
  return shape;
}

CallSession::Places CallSession::places_of(const Shape& shape) const {
  constexpr int request = static_cast<int>(Domain::request), candidate = static_cast<int>(Domain::candidate);
  const uint64_t n = shape.requests, total = shape.candidates, n_tasks = model_.program.n_tasks;
  Places to{};
  const auto place = [](size_t& end, size_t bytes) { return std::exchange(end, end + align(bytes)); };
  to.inputs = align(sizeof(Batch));
  to.request_ids = place(to.inputs, n * model_.ids_width[request] * sizeof(int32_t));
  to.request_dense = place(to.inputs, n * model_.dense_width[request] * sizeof(float));
  to.weights = place(to.inputs, model_.program.n_fused * sizeof(float));
  to.offsets = place(to.inputs, shape.whole ? 0 : (n + 1) * sizeof(uint64_t));
  to.slots = place(to.inputs, shape.has_slots ? total * sizeof(uint32_t) : 0);
  to.candidate_ids = place(to.inputs, total * model_.ids_width[candidate] * sizeof(int32_t));
  to.candidate_dense = place(to.inputs, total * model_.dense_width[candidate] * sizeof(float));
  if (shape.output >= 0) {
    to.scores = place(to.results, n * model_.outputs[static_cast<size_t>(shape.output)].operand.width * sizeof(float));
    to.results_to_copy = to.results;
    return to;
  }
  // What is copied back comes first.
  const auto all = [&] {
    to.fused = place(to.results, total * sizeof(float));
    to.scores = place(to.results, shape.wants_scores ? total * n_tasks * sizeof(float) : 0);
  };
  if (!shape.list) all();
  to.counts = place(to.results, shape.list ? n * sizeof(uint64_t) : 0);
  to.positions = place(to.results, n * shape.k * sizeof(uint64_t));
  to.list_fused = place(to.results, n * shape.k * sizeof(float));
  to.list_scores = place(to.results, shape.wants_scores ? n * shape.k * n_tasks * sizeof(float) : 0);
  to.list_items = place(to.results, shape.has_items ? n * shape.k * sizeof(int64_t) : 0);
  to.results_to_copy = to.results;
  if (shape.list) all();
  return to;
}

size_t CallSession::staging_bytes(uint32_t tile) const {
  const Program& program = model_.program;
  const size_t rows = (tile + kTileEdge - 1) / kTileEdge * kTileEdge;
  const size_t block = program.precision == DevicePrecision::fp32 ? 0 : block_bytes();
  return block + rows * (program.source_row_bytes + size_t{program.factor_buffers} * program.factor_row_bytes);
}

size_t CallSession::shared_bytes(uint32_t tile) const {
  return staging_bytes(tile) + (size_t{model_.program.shared_floats} * sizeof(float) + 3 * sizeof(uint32_t)) * tile;
}

unsigned CallSession::blocks_for(const Shape& shape) const {
  const unsigned together =
      std::max(1u, blocks_per_multiprocessor(kernel_of(model_.program.precision), kThreads, shared_bytes(shape.tile)));
  const uint64_t tiles = (shape.candidates + shape.tile - 1) / shape.tile;
  return static_cast<unsigned>(std::min<uint64_t>(tiles, uint64_t{together} * model_.multiprocessors));
}

// Memory for a call of that shape. Graphs know where it was: with other memory they are made again.
void CallSession::reserve(const Shape& shape, const Places& places) {
  const auto at_least = [&](auto& memory, size_t n) {
    if (memory.size() >= n) return;
    graphs_.clear();
    memory = std::remove_reference_t<decltype(memory)>(n + n / 4);
  };
  at_least(inputs_here_, places.inputs);
  at_least(inputs_, places.inputs);
  at_least(results_here_, places.results_to_copy);
  at_least(results_, places.results);
  at_least(request_rows_, shape.requests * model_.program.request_row_floats);
  if (shape.output >= 0) return;
  at_least(scratch_, size_t{blocks_for(shape)} * model_.program.scratch_floats * shape.tile);
  if (shape.has_items) at_least(slots_, shape.candidates);
  if (shape.k > 0) at_least(keys_, shape.requests * std::bit_ceil(shape.k));
}

// The call's own numbers, where the graph's first copy takes them from.
void CallSession::fill(const DeviceCall& call, const Shape& shape, const Places& places) {
  constexpr int request = static_cast<int>(Domain::request), candidate = static_cast<int>(Domain::candidate);
  unsigned char* here = inputs_here_.data();
  unsigned char *in = inputs_.data(), *out = results_.data();
  const auto copy = [&](size_t at, const auto* from, uint64_t n) {
    if (n > 0) std::memcpy(here + at, from, n * sizeof *from);
  };
  copy(places.request_ids, call.request_ids, call.n_requests * model_.ids_width[request]);
  copy(places.request_dense, call.request_dense, call.n_requests * model_.dense_width[request]);
  Batch batch{};
  batch.n_requests = call.n_requests;
  batch.request_ids = reinterpret_cast<const int32_t*>(in + places.request_ids);
  batch.request_dense = reinterpret_cast<const float*>(in + places.request_dense);
  batch.request_rows = request_rows_.data();
  batch.scores = shape.output >= 0 ? call.scores : nullptr;
  if (shape.output < 0) {
    copy(places.weights, call.fusion_weights, model_.program.n_fused);
    if (!shape.whole) copy(places.offsets, call.offsets, call.n_requests + 1);
    if (shape.has_slots) copy(places.slots, call.slots, call.total);
    copy(places.candidate_ids, call.candidate_ids, call.total * model_.ids_width[candidate]);
    copy(places.candidate_dense, call.candidate_dense, call.total * model_.dense_width[candidate]);
    batch.total = call.total;
    if (!shape.whole) batch.offsets = reinterpret_cast<const uint64_t*>(in + places.offsets);
    if (shape.has_slots) batch.slots = reinterpret_cast<const uint32_t*>(in + places.slots);
    batch.candidate_ids = reinterpret_cast<const int32_t*>(in + places.candidate_ids);
    batch.candidate_dense = reinterpret_cast<const float*>(in + places.candidate_dense);
    batch.fusion_weights = reinterpret_cast<const float*>(in + places.weights);
    if (call.catalogue != nullptr) {
      const auto& version = *reinterpret_cast<const Version*>(call.catalogue);
      batch.n_items = version.n_items;
      batch.row_slots = version.slots.data();
      batch.item_ids = version.store->ids();
      batch.item_dense = version.store->dense();
      batch.tables = version.store->tables();
    }
    batch.scratch = scratch_.data();
    batch.tile_rows = shape.tile;
    batch.fused = reinterpret_cast<float*>(out + places.fused);
    if (shape.wants_scores) batch.scores = reinterpret_cast<float*>(out + places.scores);
    batch.k = shape.k;
    batch.list_room = std::bit_ceil(shape.k);
    batch.keys = keys_.data();
    batch.positions = reinterpret_cast<uint64_t*>(out + places.positions);
    batch.counts = reinterpret_cast<uint64_t*>(out + places.counts);
    batch.list_fused = reinterpret_cast<float*>(out + places.list_fused);
    batch.list_scores = reinterpret_cast<float*>(out + places.list_scores);
    if (shape.has_items) {
      const auto& version = *reinterpret_cast<const Version*>(call.catalogue);
      batch.items = call.device_items;
      batch.slots = batch.slots_found = slots_.data();
      if (!call.items_are_rows) batch.keys_of = version.keys.data(), batch.key_mask = version.keys.size() - 1;
      if (call.list_items != nullptr) batch.list_items = reinterpret_cast<int64_t*>(out + places.list_items);
    }
    if (shape.stays) {
      batch.positions = call.positions;
      batch.counts = call.counts;
      batch.list_fused = call.list_fused;
      batch.list_scores = call.list_scores;
      batch.list_items = call.list_items;
    }
  }
  std::memcpy(here, &batch, sizeof batch);
}

void CallSession::launch_requests(const std::vector<Segment>& segments, uint64_t requests) {
  const auto* batch = reinterpret_cast<const Batch*>(inputs_.data());
  const uint64_t groups = (requests + kRequestRows - 1) / kRequestRows;
  for (const Segment& segment : segments) {
    const uint64_t most = std::max<uint64_t>(1, 8 * model_.multiprocessors / segment.n_tasks);
    const auto blocks = static_cast<unsigned>(std::min(groups, most)) * segment.n_tasks;
    device::launch(stream_, FMTR_KERNEL_OF(run_requests), blocks, kThreads, segment.room,
                   RequestArgs{model_.program, batch, segment.tasks, segment.n_tasks, segment.room});
  }
}

void CallSession::record(const Shape& shape, const Places& places) {
  const auto* batch = reinterpret_cast<const Batch*>(inputs_.data());
  const unsigned most = 8 * model_.multiprocessors;
  const auto blocks = [&](uint64_t n) { return static_cast<unsigned>(std::min<uint64_t>(n, most)); };
  stream_.copy_in(inputs_.data(), inputs_here_.data(), places.inputs);
  if (shape.output >= 0) {
    const RequestOutput& output = model_.outputs[static_cast<size_t>(shape.output)];
    launch_requests(output.segments, shape.requests);
    const uint64_t numbers = shape.requests * output.operand.width;
    device::launch(stream_, FMTR_KERNEL_OF(copy_request_output), blocks((numbers + kThreads - 1) / kThreads), kThreads,
                   0, OutputArgs{model_.program, batch, output.operand});
  } else {
    if (shape.has_items && shape.candidates > 0)
      device::launch(stream_, FMTR_KERNEL_OF(look_up_items), blocks((shape.candidates + kThreads - 1) / kThreads),
                     kThreads, 0, LookUpArgs{batch});
    launch_requests(model_.request, shape.requests);
    if (shape.candidates > 0)
      device::launch(stream_, kernel_of(model_.program.precision), blocks_for(shape), kThreads,
                     shared_bytes(shape.tile),
                     ScoreArgs{model_.program, batch, static_cast<uint32_t>(staging_bytes(shape.tile))});
    if (shape.list)
      device::launch(stream_, FMTR_KERNEL_OF(list_best), blocks(shape.requests), kThreads, sizeof(ListShared),
                     ListArgs{batch, model_.program.n_tasks});
  }
  if (!shape.stays) stream_.copy_out(results_here_.data(), results_.data(), places.results_to_copy);
}

void CallSession::launch(const Shape& shape, const Places& places) {
  auto found = graphs_.find(shape);
  if (found == graphs_.end()) {
    if (graphs_.size() >= kMostGraphs) graphs_.clear();
    found = graphs_.emplace(shape, Graph(stream_, [&] { record(shape, places); })).first;
  }
  found->second.launch(stream_);
  stream_.wait();
}

void CallSession::run(const DeviceCall& call) {
  const Shape shape = shape_of(call, -1);
  const Places places = places_of(shape);
  reserve(shape, places);
  fill(call, shape, places);
  if (call.wait_for_stream) stream_.wait_for_foreign(call.stream);
  launch(shape, places);
  if (shape.stays) return;
  const unsigned char* from = results_here_.data();
  const uint64_t n_tasks = model_.program.n_tasks;
  const auto copy = [&](auto* to, size_t at, uint64_t n) {
    if (to != nullptr && n > 0) std::memcpy(to, from + at, n * sizeof *to);
  };
  if (!call.list) {
    copy(call.scores, places.scores, call.total * n_tasks);
    copy(call.fused, places.fused, call.total);
    return;
  }
  copy(call.counts, places.counts, call.n_requests);
  for (uint64_t r = 0; r < call.n_requests; ++r) {
    const uint64_t to = r * call.list_stride, at = r * call.k;
    copy(call.positions + to, places.positions + at * sizeof(uint64_t), call.k);
    if (call.list_fused != nullptr) copy(call.list_fused + to, places.list_fused + at * sizeof(float), call.k);
    if (call.list_items != nullptr) copy(call.list_items + to, places.list_items + at * sizeof(int64_t), call.k);
    if (call.list_scores != nullptr)
      copy(call.list_scores + to * n_tasks, places.list_scores + at * n_tasks * sizeof(float), call.k * n_tasks);
  }
}

void CallSession::request_output(DeviceCall call, uint32_t index, float* values) {
  const Shape shape = shape_of(call, static_cast<int32_t>(index));
  const Places places = places_of(shape);
  reserve(shape, places);
  call.scores = shape.stays ? values : reinterpret_cast<float*>(results_.data() + places.scores);
  fill(call, shape, places);
  launch(shape, places);
  if (shape.stays) return;
  std::memcpy(values, results_here_.data(), call.n_requests * model_.outputs[index].operand.width * sizeof(float));
}

}  // namespace fastmtr::device
