// The versions of a model's catalogue: one is current, and those before it live on while a call reads them.
//
// A reader announces what it reads in a place of its own (a hazard pointer: Michael, 2004), so taking the current
// version needs no lock and writes to nothing that another thread writes to. A version is freed by whoever comes after
// its last reader: the next writer, or the reader itself when it notices that its version is no longer the current one.
#ifndef FASTMTR_CORE_CATALOGUE_VERSIONS_H
#define FASTMTR_CORE_CATALOGUE_VERSIONS_H

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "core/catalogue.h"

namespace fastmtr {

class CatalogueVersions {
 public:
  // One thread's way to the versions; made once, used for many calls.
  class Reader {
   public:
    explicit Reader(CatalogueVersions& versions);
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

   private:
    friend CatalogueVersions;
    CatalogueVersions& versions_;
    alignas(kAlign) std::atomic<const Catalogue*> reads_{nullptr};
  };

  // The current version for as long as this lives; one at a time of a Reader. NULL: there is none.
  class Snapshot {
   public:
    explicit Snapshot(Reader& reader) noexcept;
    ~Snapshot();
    Snapshot(const Snapshot&) = delete;
    Snapshot& operator=(const Snapshot&) = delete;
    const Catalogue* get() const { return catalogue_; }

   private:
    Reader& reader_;
    const Catalogue* catalogue_;
  };

  CatalogueVersions() = default;
  CatalogueVersions(const CatalogueVersions&) = delete;
  CatalogueVersions& operator=(const CatalogueVersions&) = delete;
  ~CatalogueVersions();

  // For the one thread that writes: the current version, and the one that takes its place.
  const Catalogue* current() const { return current_.load(std::memory_order_relaxed); }
  void publish(std::unique_ptr<Catalogue> next, uint64_t version);

 private:
  void free_unread() noexcept;
  bool is_read(const Catalogue* catalogue) const noexcept;

  std::atomic<const Catalogue*> current_{nullptr};
  std::mutex mutex_;                               // of what follows; never held while a version is made
  std::deque<std::unique_ptr<Catalogue>> living_;  // oldest first, the current one last
  std::vector<const Reader*> readers_;
};

}  // namespace fastmtr
#endif
