#include "core/model.h"

#include "core/costs.h"
#include "core/json.h"
#include "core/manifest.h"
#include "core/mapped_file.h"
#include "core/status.h"
#include "registry.h"

namespace fastmtr {

namespace {
constexpr uint64_t kMaxPlan = 64u << 20;
}

struct Model::Files {
  std::string plan_sha256, weights_sha256;
  SafeTensors weights;
  Plan plan;
  std::string catalogue;  // its path; "" for none

  Files(const std::string& directory, bool without_catalogue) {
    const Manifest manifest(directory);
    weights = SafeTensors(manifest.path("weights.safetensors"), "weights.safetensors");
    const MappedFile json(manifest.path("plan.json"));
    if (json.size() > kMaxPlan)
      fail(FMTR_ERROR_BUNDLE, "plan.json: ", json.size(), " bytes; at most ", kMaxPlan, " are read");
    plan = read_plan(json.text(), weights);
    plan_sha256 = manifest.sha256("plan.json");
    weights_sha256 = manifest.sha256("weights.safetensors");
    const std::string name = "catalogue.safetensors";
    if (without_catalogue) return;
    if (manifest.lists(name))
      catalogue = manifest.path(name);
    else if (file_bytes(directory + "/" + name))
      fail(FMTR_ERROR_BUNDLE, name, " is there, but manifest.json does not list it");
  }
};

Model::Model(const std::string& directory, const char* isa, bool without_catalogue, Precision precision)
    : Model(Files(directory, without_catalogue), choose_kernels(isa), precision, nullptr, DevicePrecision::fp32) {}

Model::Model(const std::string& directory, const char* isa, bool without_catalogue, DevicePrecision precision,
             const DevicePlugin& device)
    : Model(Files(directory, without_catalogue), choose_kernels(isa), Precision::fp32, &device, precision) {}

Model::Model(Files&& files, const Kernels& kernels, Precision precision, const DevicePlugin* device,
             DevicePrecision device_precision)
    : plan_sha256_(std::move(files.plan_sha256)),
      weights_sha256_(std::move(files.weights_sha256)),
      weights_(std::move(files.weights)),
      plan_(std::move(files.plan)),
      program_(std::make_unique<Program>(plan_, kernels, precision)),
      checks_{{plan_, Domain::request}, {plan_, Domain::item}, {plan_, Domain::candidate}} {
  if (device != nullptr) device_ = std::make_shared<const OnDevice>(plan_, *program_, device_precision, *device);
  if (!files.catalogue.empty()) publish(Catalogue::open(files.catalogue, plan_, *program_), next_version());
}

uint64_t Model::next_version() const {
  return catalogues_.current() == nullptr ? 1 : catalogues_.current()->version() + 1;
}

void Model::publish(std::unique_ptr<Catalogue> next, uint64_t version) {
  if (device_ != nullptr) next->put_on(device_);
  catalogues_.publish(std::move(next), version);
}

void Model::set_catalogue(const fmtr_catalogue_data& data) {
  const std::lock_guard lock(writer_);
  publish(Catalogue::copy(data, plan_, *program_), next_version());
}

void Model::upsert(const fmtr_catalogue_data& data) {
  const std::lock_guard lock(writer_);
  if (catalogues_.current() == nullptr) {
    publish(Catalogue::copy(data, plan_, *program_), next_version());
  } else {
    check_items(data, plan_, FMTR_ERROR_SCHEMA);
    if (!catalogues_.current()->has_room(data.n_items))
      publish(catalogues_.current()->moved(data.n_items, plan_), catalogues_.current()->version());
    publish(catalogues_.current()->with(data), next_version());
  }
}

uint64_t Model::remove(const int64_t* keys, uint64_t n) {
  const std::lock_guard lock(writer_);
  const Catalogue* current = catalogues_.current();
  if (current == nullptr) return 0;
  const uint64_t before = current->n_items();
  auto next = current->without(keys, n);
  const uint64_t removed = before - next->n_items();
  if (removed == 0) return 0;
  publish(std::move(next), next_version());
  return removed;
}

void Model::read_keys(int64_t* keys, uint64_t capacity) const {
  read([&](const Catalogue* catalogue) {
    const uint64_t n = catalogue == nullptr ? 0 : catalogue->n_items();
    if (capacity < n) fail(FMTR_ERROR_ARGUMENT, "keys has room for ", capacity, ", the catalogue has ", n, " items");
    if (n == 0) return;
    if (keys == nullptr) fail(FMTR_ERROR_ARGUMENT, "keys is NULL");
    catalogue->read_keys(keys);
  });
}

void Model::read_item_output(const std::string& name, const int64_t* keys, uint64_t n, float* values,
                             uint64_t capacity) const {
  const Operand& operand = plan_.output(name, Role::item).operand;
  read([&](const Catalogue* catalogue) {
    if (catalogue == nullptr) fail(FMTR_ERROR_ARGUMENT, "the model has no catalogue: set one first");
    const uint64_t needed = (keys == nullptr ? catalogue->n_items() : n) * operand.width;
    if (capacity < needed)
      fail(FMTR_ERROR_ARGUMENT, "values has room for ", capacity, " numbers, ", needed, " are needed");
    if (needed > 0 && values == nullptr) fail(FMTR_ERROR_ARGUMENT, "values is NULL");
    const Port port = program_->port(operand, Domain::item);
    if (keys == nullptr)
      catalogue->read(port, values);
    else
      catalogue->read(port, keys, n, values);
  });
}

std::string Model::explain() const {
  const uint64_t n_items =
      read([](const Catalogue* catalogue) { return catalogue == nullptr ? 0 : uint64_t{catalogue->n_items()}; });
  std::string json = explain_json(*program_, n_items);
  if (device_ != nullptr) json.replace(json.size() - 1, 1, say(", \"device\": ", device_->describe(), "}"));
  return json;
}

std::string Model::describe() const {
  uint64_t n_items = 0, version = 0, bytes = 0;
  read([&](const Catalogue* catalogue) {
    if (catalogue != nullptr)
      n_items = catalogue->n_items(), version = catalogue->version(), bytes = catalogue->bytes();
  });
  std::string inputs, outputs, fused, weights, offsets, widths;
  for (const PlanInput& input : plan_.inputs) {
    inputs += say(inputs.empty() ? "" : ", ", "{\"name\": ", json_quote(input.name), ", \"domain\": \"",
                  domain_name(input.domain), "\", \"kind\": \"", input.ids ? "ids" : "dense",
                  "\", \"offset\": ", input.offset, ", \"width\": ", input.width);
    if (input.ids)
      inputs += say(", \"rows\": ", input.rows, ", \"padding\": ", input.padding < 0 ? "null" : say(input.padding));
    inputs += "}";
  }
  for (const PlanOutput& output : plan_.outputs)
    outputs += say(outputs.empty() ? "" : ", ", "{\"name\": ", json_quote(output.name), ", \"role\": \"",
                   role_name(output.role), "\", \"width\": ", output.operand.width, "}");
  std::string tasks;
  for (const uint32_t t : plan_.tasks) tasks += say(tasks.empty() ? "" : ", ", json_quote(plan_.outputs[t].name));
  for (size_t i = 0; i < plan_.fusion.tasks.size(); ++i) {
    const char* comma = i == 0 ? "" : ", ";
    fused += say(comma, json_quote(plan_.outputs[plan_.tasks[plan_.fusion.tasks[i]]].name));
    weights += say(comma, double{plan_.fusion.weights[i]});
    offsets += say(comma, double{plan_.fusion.offsets[i]});
  }
  std::string int8_steps;
  for (const std::string& name : program_->int8_steps())
    int8_steps += say(int8_steps.empty() ? "" : ", ", json_quote(name));
  for (const Domain domain : {Domain::request, Domain::item, Domain::candidate})
    widths += say(widths.empty() ? "" : ", ", "\"", domain_name(domain),
                  "\": {\"ids\": ", plan_.ids_width[static_cast<int>(domain)],
                  ", \"dense\": ", plan_.dense_width[static_cast<int>(domain)], "}");
  std::string tables;
  for (const Table& table : program_->tables()) {
    const Buffer& buffer = plan_.buffers[table.buffer];
    tables += say(tables.empty() ? "" : ", ", "{\"name\": ", json_quote(buffer.name), ", \"dtype\": \"",
                  dtype_name(buffer), "\", \"width\": ", buffer.width, ", \"row_bytes\": ", table.row_bytes, "}");
  }
  return say("{\"inputs\": [", inputs, "], \"widths\": {", widths, "}, \"tasks\": [", tasks, "], \"outputs\": [",
             outputs, "], \"fusion\": {\"kind\": \"", plan_.fusion.product ? "product" : "sum", "\", \"tasks\": [",
             fused, "], \"weights\": [", weights, "], \"offsets\": [", offsets,
             "]}, \"isa\": ", json_quote(program_->kernels().isa), ", \"precision\": \"",
             device_ != nullptr ? precision_name(device_->precision()) : precision_name(program_->precision()),
             "\", \"device\": ", device_ != nullptr ? device_->describe() : "{\"name\": \"cpu\"}",
             ", \"int8_steps\": [", int8_steps, "]", ", \"plan_sha256\": ", json_quote(plan_sha256_),
             ", \"weights_sha256\": ", json_quote(weights_sha256_), ", \"n_items\": ", n_items,
             ", \"has_catalogue\": ", version == 0 ? "false" : "true", ", \"catalogue_version\": ", version,
             ", \"item_tables\": [", tables,
             "], \"workspace_floats_a_candidate\": ", program_->floats_a_row(Domain::candidate),
             ", \"memory\": {\"weights_mapped\": ", weights_.file_bytes(),
             ", \"weights_packed\": ", program_->packed_bytes(), ", \"catalogue\": ", bytes, "}}");
}

}  // namespace fastmtr
