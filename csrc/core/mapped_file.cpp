#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/status.h"

namespace fastmtr {

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK: opening a pipe that somebody put there must not wait for its writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(FMTR_ERROR_BUNDLE, path, " cannot be opened: ", std::strerror(errno));
  struct stat about;
  if (::fstat(descriptor, &about) != 0 || !S_ISREG(about.st_mode)) {
    ::close(descriptor);
    fail(FMTR_ERROR_BUNDLE, path, " is not a regular file");
  }
  size_ = static_cast<uint64_t>(about.st_size);
  if (size_ > 0) {
    void* at = ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, descriptor, 0);
    const int problem = errno;
    ::close(descriptor);
    if (at == MAP_FAILED) fail(FMTR_ERROR_BUNDLE, path, " cannot be mapped into memory: ", std::strerror(problem));
    data_ = static_cast<const unsigned char*>(at);
  } else {
    ::close(descriptor);
  }
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<unsigned char*>(data_), static_cast<size_t>(size_));
}

std::optional<uint64_t> file_bytes(const std::string& path) {
  struct stat about;
  if (::stat(path.c_str(), &about) != 0 || !S_ISREG(about.st_mode)) return std::nullopt;
  return static_cast<uint64_t>(about.st_size);
}

}  // namespace fastmtr
