// A whole file, read-only, mapped into memory.
#ifndef FASTMTR_CORE_MAPPED_FILE_H
#define FASTMTR_CORE_MAPPED_FILE_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fastmtr {

class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);  // FMTR_ERROR_BUNDLE when it cannot be opened or is no regular file
  MappedFile(MappedFile&& other) noexcept { *this = static_cast<MappedFile&&>(other); }
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const unsigned char* data() const { return data_; }
  uint64_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), static_cast<size_t>(size_)}; }

 private:
  const unsigned char* data_ = nullptr;
  uint64_t size_ = 0;
};

// Bytes of a regular file; none where there is nothing or something else.
std::optional<uint64_t> file_bytes(const std::string& path);

}  // namespace fastmtr
#endif
