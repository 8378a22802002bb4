#include "core/catalogue_versions.h"

#include <algorithm>

namespace fastmtr {

CatalogueVersions::Reader::Reader(CatalogueVersions& versions) : versions_(versions) {
  const std::lock_guard lock(versions_.mutex_);
  versions_.readers_.push_back(this);
}

CatalogueVersions::Reader::~Reader() {
  const std::lock_guard lock(versions_.mutex_);
  auto& readers = versions_.readers_;
  readers.erase(std::find(readers.begin(), readers.end(), this));
}

CatalogueVersions::Snapshot::Snapshot(Reader& reader) noexcept : reader_(reader) {
  const auto& current = reader.versions_.current_;
  catalogue_ = current.load(std::memory_order_acquire);
  // A writer that does not see the announcement has published before it: then the second look finds the new version.
  for (;;) {
    reader.reads_.store(catalogue_, std::memory_order_seq_cst);
    const Catalogue* now = current.load(std::memory_order_seq_cst);
    if (now == catalogue_) return;
    catalogue_ = now;
  }
}

CatalogueVersions::Snapshot::~Snapshot() {
  reader_.reads_.store(nullptr, std::memory_order_release);
  if (reader_.versions_.current_.load(std::memory_order_relaxed) != catalogue_) reader_.versions_.free_unread();
}

CatalogueVersions::~CatalogueVersions() {
  while (!living_.empty()) living_.pop_front();  // oldest first, as they give their slots back
}

void CatalogueVersions::publish(std::unique_ptr<Catalogue> next, uint64_t version) {
  {
    const std::lock_guard lock(mutex_);
    living_.push_back(std::move(next));
    Catalogue* previous = living_.size() > 1 ? living_[living_.size() - 2].get() : nullptr;
    living_.back()->publish(version, previous);
    current_.store(living_.back().get(), std::memory_order_seq_cst);
  }
  free_unread();
}

bool CatalogueVersions::is_read(const Catalogue* catalogue) const noexcept {
  return std::any_of(readers_.begin(), readers_.end(),
                     [&](const Reader* reader) { return reader->reads_.load(std::memory_order_seq_cst) == catalogue; });
}

// Oldest first and no further than the oldest that is read: a version's slots may be used again once it and all before
// it are gone.
void CatalogueVersions::free_unread() noexcept {
  for (;;) {
    std::unique_ptr<Catalogue> oldest;  // freed after the lock is let go: that may take a while
    const std::lock_guard lock(mutex_);
    if (living_.size() < 2 || is_read(living_.front().get())) return;
    oldest = std::move(living_.front());
    living_.pop_front();
  }
}

}  // namespace fastmtr
