#include "core/manifest.h"

#include "core/json.h"
#include "core/mapped_file.h"
#include "core/status.h"

namespace fastmtr {

namespace {
constexpr int64_t kFormatVersion = 1;
constexpr uint64_t kMaxManifest = 64u << 20;
}  // namespace

Manifest::Manifest(const std::string& directory) : directory_(directory) {
  const std::string path = directory + "/manifest.json";
  if (!file_bytes(path)) fail(FMTR_ERROR_BUNDLE, directory, " is no bundle: expected a directory with a manifest.json");
  const MappedFile file(path);
  if (file.size() > kMaxManifest)
    fail(FMTR_ERROR_BUNDLE, "manifest.json: ", file.size(), " bytes; at most ", kMaxManifest, " are read");
  const Json json = parse_json(file.text(), "manifest.json");
  const Json* version = json.find("format_version");
  if (version == nullptr || !version->integer)
    fail(FMTR_ERROR_BUNDLE, "manifest.json: 'format_version' is missing or no whole number");
  if (version->whole != kFormatVersion)
    fail(FMTR_ERROR_BUNDLE, "manifest.json: the bundle has format version ", version->whole, "; fastmtr ",
         fmtr_version(), " reads version ", kFormatVersion,
         version->whole > kFormatVersion ? ": install a newer fastmtr" : ": make the bundle again");
  const Json* files = json.find("files");
  if (files == nullptr || files->kind != Json::Kind::object)
    fail(FMTR_ERROR_BUNDLE, "manifest.json: 'files' is missing or no object");
  for (const auto& [name, entry] : files->object) {
    if (name.empty() || name.find('/') != std::string::npos || name == "." || name == "..")
      fail(FMTR_ERROR_BUNDLE, "manifest.json: 'files' names ", quote(name), ", which is no plain file name");
    const Json* bytes = entry.find("bytes");
    if (bytes == nullptr || !bytes->integer || bytes->whole < 0)
      fail(FMTR_ERROR_BUNDLE, "manifest.json: file ", quote(name),
           ": 'bytes' is missing or no whole number of 0 or more");
    const Json* sha256 = entry.find("sha256");
    const bool told = sha256 != nullptr && sha256->kind == Json::Kind::string;
    files_[name] = {static_cast<uint64_t>(bytes->whole), told ? sha256->string : ""};
  }
}

std::string Manifest::path(const std::string& name) const {
  const auto listed = files_.find(name);
  if (listed == files_.end())
    fail(FMTR_ERROR_BUNDLE, "manifest.json does not list ", name, ", which every bundle needs");
  const std::string path = directory_ + "/" + name;
  const auto found = file_bytes(path);
  if (!found) fail(FMTR_ERROR_BUNDLE, name, " is missing, but manifest.json lists it: the bundle is incomplete");
  if (*found != listed->second.bytes)
    fail(FMTR_ERROR_BUNDLE, name, " has ", *found, " bytes, manifest.json says ", listed->second.bytes,
         ": the bundle is damaged or was altered");
  return path;
}

}  // namespace fastmtr
