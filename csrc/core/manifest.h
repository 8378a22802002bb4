// manifest.json: which version the bundle has, and how large its files must be.
#ifndef FASTMTR_CORE_MANIFEST_H
#define FASTMTR_CORE_MANIFEST_H

#include <cstdint>
#include <map>
#include <string>

namespace fastmtr {

class Manifest {
 public:
  // Throws FMTR_ERROR_BUNDLE when it is missing, malformed, or of a version that this engine does not read.
  explicit Manifest(const std::string& directory);

  bool lists(const std::string& name) const { return files_.count(name) != 0; }
  // The path of a listed file, whose size is checked. Checksums are Python's to check: a service opens a bundle of many
  // GB at once.
  std::string path(const std::string& name) const;
  // The checksum of a listed file as the manifest tells it; "" if it does not.
  const std::string& sha256(const std::string& name) const { return files_.at(name).sha256; }

 private:
  struct File {
    uint64_t bytes;
    std::string sha256;
  };
  std::string directory_;
  std::map<std::string, File> files_;
};

}  // namespace fastmtr
#endif
