#include <cuda_runtime.h>

#include <map>
#include <mutex>

#include "core/status.h"
#include "cuda/runtime.h"

namespace fastmtr::device {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it, where it can be forgotten
  fail(error == cudaErrorMemoryAllocation ? FMTR_ERROR_MEMORY : FMTR_ERROR_BACKEND, "CUDA: ", what, ": ",
       cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

int attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), "properties of the device");
  return value;
}

// A kernel may use more shared memory than 48 KiB only where that was allowed, on each device.
void allow_shared_memory(const void* kernel, const char* name, size_t bytes) {
  if (bytes <= 48 * 1024) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), name);
  const std::lock_guard lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
  most = bytes;
}

}  // namespace

int device_count(std::string& why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  if (error == cudaSuccess) {
    why = "CUDA finds no device";
  } else {
    int driver = 0;
    why = std::string("CUDA: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) why += "; no driver is installed";
  }
  return 0;
}

Properties properties(int device) {
  cudaDeviceProp all;
  check(cudaGetDeviceProperties(&all, device), "properties of the device");
  return {all.name,
          all.major,
          all.minor,
          static_cast<unsigned>(all.multiProcessorCount),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
          all.sharedMemPerMultiprocessor,
          all.totalGlobalMem,
          static_cast<size_t>(all.l2CacheSize)};
}

void use_device(int device) { check(cudaSetDevice(device), "choosing the device"); }

void* allocate(size_t bytes, Place place) {
  void* memory = nullptr;
  if (bytes == 0) return memory;
  const std::string what = say("allocating ", bytes, place == Place::device ? " bytes on the device" : " pinned bytes");
  check(place == Place::device ? cudaMalloc(&memory, bytes) : cudaMallocHost(&memory, bytes), what.c_str());
  return memory;
}

void release(void* memory, Place place) noexcept {
  if (memory) place == Place::device ? cudaFree(memory) : cudaFreeHost(memory);
}

// ---- streams -------------------------------------------------------------------------------------------------------

struct Stream::State {
  cudaStream_t stream = nullptr;
  ~State() { cudaStreamDestroy(stream); }
};
struct Event::State {
  cudaEvent_t event = nullptr;
  ~State() { cudaEventDestroy(event); }
};

Stream::Stream() : state_(std::make_unique<State>()) {
  check(cudaStreamCreateWithFlags(&state_->stream, cudaStreamNonBlocking), "making a stream");
}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;

void Stream::copy_in(void* device, const void* host, size_t bytes) {
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, state_->stream), "copying to the device");
}
void Stream::copy_out(void* host, const void* device, size_t bytes) {
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, state_->stream), "copying from the device");
}
void Stream::copy(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, state_->stream), "copying on the device");
}
void Stream::set(void* device, unsigned char value, size_t bytes) {
  check(cudaMemsetAsync(device, value, bytes, state_->stream), "setting memory of the device");
}
void Stream::wait_for(const Event& event) {
  check(cudaStreamWaitEvent(state_->stream, event.state().event, 0), "waiting for an event");
}
void Stream::wait_for_foreign(void* stream) {
  Event now;
  check(cudaEventRecord(now.state().event, static_cast<cudaStream_t>(stream)), "recording an event");
  wait_for(now);
}
void Stream::wait() { check(cudaStreamSynchronize(state_->stream), "waiting for the stream"); }

namespace detail {

void launch(Stream& stream, const char* name, const void* kernel, void (*)(const void*, const void*), const void* args,
            size_t, unsigned grid, unsigned block, size_t shared_bytes) {
  allow_shared_memory(kernel, name, shared_bytes);
  void* parameters[] = {const_cast<void*>(args)};
  const cudaError_t error =
      cudaLaunchKernel(kernel, dim3(grid), dim3(block), parameters, shared_bytes, stream.state().stream);
  if (error != cudaSuccess)
    check(error, say("launching ", name, " of ", grid, " blocks of ", block, " threads with ", shared_bytes,
                     " bytes of shared memory")
                     .c_str());
}

unsigned blocks_per_multiprocessor(const char* name, const void* kernel, unsigned block, size_t shared_bytes) {
  int device = 0;
  check(cudaGetDevice(&device), name);
  if (shared_bytes > static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device))) return 0;
  allow_shared_memory(kernel, name, shared_bytes);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(block), shared_bytes), name);
  return static_cast<unsigned>(blocks);
}

}  // namespace detail

Event::Event() : state_(std::make_unique<State>()) { check(cudaEventCreate(&state_->event), "making an event"); }
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;

void Event::record(Stream& stream) {
  check(cudaEventRecord(state_->event, stream.state().stream), "recording an event");
}
void Event::wait() { check(cudaEventSynchronize(state_->event), "waiting for an event"); }
double Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start.state_->event, state_->event), "time between events");
  return milliseconds;
}

struct Graph::State {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ~State() {
    if (executable) cudaGraphExecDestroy(executable);
    if (graph) cudaGraphDestroy(graph);
  }
};

Graph::Graph(Stream& stream, const std::function<void()>& body) : state_(std::make_unique<State>()) {
  const cudaStream_t on = stream.state().stream;
  check(cudaStreamBeginCapture(on, cudaStreamCaptureModeThreadLocal), "recording a graph");
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(on, &state_->graph);
    throw;
  }
  check(cudaStreamEndCapture(on, &state_->graph), "recording a graph");
  check(cudaGraphInstantiate(&state_->executable, state_->graph, 0), "making a graph");
}
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

void Graph::launch(Stream& stream) const {
  check(cudaGraphLaunch(state_->executable, stream.state().stream), "launching a graph");
}

}  // namespace fastmtr::device
