// Owners of what the CUDA runtime hands out: memory, streams, events. Plain: no absl, so that .cu
// files may include it. None of them is thread-safe; all belong to the device that is current when
// they are made.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

namespace hearth::worker {

// `size` values of device memory, uninitialised. T is trivially copyable.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept { Swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    Swap(other);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  // Gives up what was held, also where the new memory cannot be had.
  cudaError_t Allocate(int64_t size) {
    cudaFree(data_);
    data_ = nullptr;
    size_ = 0;
    if (size == 0) return cudaSuccess;
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, bytes_of(size));
    if (error != cudaSuccess) return error;
    data_ = static_cast<T*>(data);
    size_ = size;
    return cudaSuccess;
  }

  // Blocking; for set-up and tests. n <= size().
  cudaError_t CopyFrom(const T* host, int64_t n) {
    return cudaMemcpy(data_, host, bytes_of(n), cudaMemcpyHostToDevice);
  }
  cudaError_t CopyTo(T* host, int64_t n) const {
    return cudaMemcpy(host, data_, bytes_of(n), cudaMemcpyDeviceToHost);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  static size_t bytes_of(int64_t n) { return static_cast<size_t>(n) * sizeof(T); }
  void Swap(DeviceBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  T* data_ = nullptr;
  int64_t size_ = 0;
};

// A handle of the runtime that is made by Create() and destroyed by Destroy.
template <typename Handle, cudaError_t (*Destroy)(Handle)>
class CudaHandle {
 public:
  CudaHandle() = default;
  CudaHandle(CudaHandle&& other) noexcept { std::swap(handle_, other.handle_); }
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  CudaHandle(const CudaHandle&) = delete;
  CudaHandle& operator=(const CudaHandle&) = delete;
  ~CudaHandle() { Reset(); }

  void Reset() {
    if (handle_ != nullptr) Destroy(handle_);
    handle_ = nullptr;
  }
  Handle get() const { return handle_; }
  // For the runtime's calls that make a handle; what was held is given up.
  Handle* put() {
    Reset();
    return &handle_;
  }

 private:
  Handle handle_ = nullptr;
};

class Stream : public CudaHandle<cudaStream_t, cudaStreamDestroy> {
 public:
  cudaError_t Create() { return cudaStreamCreateWithFlags(put(), cudaStreamNonBlocking); }
};

class Event : public CudaHandle<cudaEvent_t, cudaEventDestroy> {
 public:
  cudaError_t Create() { return cudaEventCreate(put()); }
};

class Graph : public CudaHandle<cudaGraph_t, cudaGraphDestroy> {};
class GraphExec : public CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy> {};

}  // namespace hearth::worker
