#include "registry.h"

#include <cstdlib>
#include <cstring>

#include "core/device_plugin.h"
#include "core/json.h"
#include "core/status.h"

namespace fastmtr {

namespace {

struct Isa {
  const char* name;
  const Kernels* (*kernels)(const char** why);
  bool automatic;  // else only by name: for tests
};

// Best first.
constexpr Isa kIsas[] = {{"avx512_vnni", avx512_vnni_kernels, true},
                         {"avx512", avx512_kernels, true},
                         {"avx2", avx2_kernels, true},
                         {"neon", neon_kernels, true},
                         {"baseline", baseline_kernels, true},
                         {"emulated16", emulated16_kernels, false}};

const Kernels& named(const char* isa, const char* asked_by) {
  std::string known;
  for (const Isa& candidate : kIsas) {
    known += say(known.empty() ? "" : ", ", candidate.name);
    if (std::strcmp(candidate.name, isa) != 0) continue;
    const char* why = "";
    const Kernels* kernels = candidate.kernels(&why);
    if (kernels == nullptr)
      fail(FMTR_ERROR_BACKEND, asked_by, " asks for instruction set ", isa, ", which cannot be used here: ", why);
    return *kernels;
  }
  fail(FMTR_ERROR_BACKEND, asked_by, " asks for instruction set ", quote(isa), ", which is not known; there are ",
       known);
}

}  // namespace

const Kernels& choose_kernels(const char* isa) {
  if (isa != nullptr && *isa != '\0') return named(isa, "the caller");
  const char* forced = std::getenv("FASTMTR_FORCE_ISA");
  if (forced != nullptr && *forced != '\0') return named(forced, "FASTMTR_FORCE_ISA");
  for (const Isa& candidate : kIsas) {
    const char* why = "";
    if (!candidate.automatic) continue;
    if (const Kernels* kernels = candidate.kernels(&why)) return *kernels;
  }
  fail(FMTR_ERROR_INTERNAL, "this build has no kernels at all");
}

std::string info_json() {
  std::string isas;
  for (const Isa& candidate : kIsas) {
    const char* why = "";
    const Kernels* kernels = candidate.kernels(&why);
    isas += say(isas.empty() ? "" : ", ", "{\"name\": ", json_quote(candidate.name),
                ", \"available\": ", kernels != nullptr ? "true" : "false");
    if (kernels != nullptr) isas += say(", \"vector_floats\": ", kernels->vector_floats);
    if (kernels == nullptr) isas += say(", \"reason\": ", json_quote(why));
    if (!candidate.automatic) isas += ", \"purpose\": \"tests\"";
    isas += "}";
  }
  std::string devices = "{\"name\": \"cpu\", \"available\": true}";
  for (const std::string& name : device_names()) {
    const DevicePlugin& plugin = device_plugin(name);
    const bool for_tests = name != "cuda";
    if (for_tests && !plugin.there) continue;
    devices += say(", {\"name\": ", json_quote(name), ", \"available\": ", plugin.api != nullptr ? "true" : "false");
    if (plugin.api != nullptr)
      devices += say(", \"processor\": ", json_quote(plugin.properties.name),
                     ", \"memory_bytes\": ", plugin.properties.memory_bytes);
    else
      devices += say(", \"reason\": ", json_quote(plugin.why));
    if (for_tests) devices += ", \"purpose\": \"tests\"";
    devices += "}";
  }
  return say("{\"version\": ", json_quote(fmtr_version()), ", \"abi\": ", fmtr_abi_version(),
             ", \"isa\": ", json_quote(choose_kernels(nullptr).isa), ", \"instruction_sets\": [", isas,
             "], \"back_ends\": [", devices, "]}");
}

}  // namespace fastmtr
