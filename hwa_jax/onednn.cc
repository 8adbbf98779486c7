// Convolutions and their gradients for XLA's CPU client, by oneDNN. Built and described by onednn.py.
//
// A call computes many members (particles) at once. Members, or parts of a batch where there are
// fewer members than threads, are distributed over XLA's own threads, and each is one oneDNN
// primitive on one thread: no second pool of threads competes with XLA's.

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;

namespace {

// Which argument of the trilinear form is computed from the other two, in the order (lhs, rhs, out).
enum Result : int64_t { kLhs, kRhs, kOut };

// The numbers that onednn.py sends, in its order; the batch is replaced by that of one task.
enum Field {
  kResult, kBatch, kHeight, kWidth, kIn, kOutHeight, kOutWidth, kOutFeatures, kWindowHeight,
  kWindowWidth, kGroups, kStrides, kLow = kStrides + 2, kHigh = kLow + 2, kDilation = kHigh + 2,
  kNumFields = kDilation + 2
};
using Shape = std::array<int64_t, kNumFields>;

const dnnl::engine& Cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// oneDNN splits its work over the threads that OpenMP would give the calling thread.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

char* Workspace(int index, size_t bytes) {  // kept by each thread for its next call
  struct Free {
    void operator()(char* block) const { std::free(block); }
  };
  thread_local std::array<std::unique_ptr<char, Free>, 2> blocks;
  thread_local std::array<size_t, 2> sizes{};
  if (sizes[index] < bytes) {
    bytes = (bytes + 63) / 64 * 64;
    blocks[index].reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
    sizes[index] = blocks[index] ? bytes : 0;
    if (!blocks[index]) throw std::bad_alloc();
  }
  return blocks[index].get();
}

dnnl::primitive_attr UserWorkspace() {  // the library's own would tie a primitive to a thread
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

// One primitive. NHWC and HWIO arrays; weights are copied into the order that oneDNN chooses.
class Convolution {
 public:
  explicit Convolution(const Shape& s) : result_(Result(s[kResult])) {
    const int64_t groups = s[kGroups], in = s[kIn] / groups, out = s[kOutFeatures];
    const int64_t row = s[kWindowWidth] * in * out, column = in * out;
    const memory::dims window{groups, out / groups, in, s[kWindowHeight], s[kWindowWidth]};
    const memory::dims order{out / groups, 1, out, row, column};
    const int skip = groups == 1;  // oneDNN has faster code for weights without a group axis
    const auto f32 = memory::data_type::f32;
    const auto nhwc = memory::format_tag::nhwc;
    lhs_ = {{s[kBatch], s[kIn], s[kHeight], s[kWidth]}, f32, nhwc};
    out_ = {{s[kBatch], out, s[kOutHeight], s[kOutWidth]}, f32, nhwc};
    rhs_ = {{window.begin() + skip, window.end()}, f32, {order.begin() + skip, order.end()}};
    const memory::desc any(rhs_.get_dims(), f32, memory::format_tag::any);
    auto pair = [&s](int field) { return memory::dims{s[field], s[field + 1]}; };
    const auto strides = pair(kStrides), low = pair(kLow), high = pair(kHigh);
    const memory::dims dilation{s[kDilation] - 1, s[kDilation + 1] - 1};  // oneDNN counts from 0
    const auto direct = dnnl::algorithm::convolution_direct;
    const auto attributes = UserWorkspace();
    const dnnl::convolution_forward::primitive_desc forward(
        Cpu(), dnnl::prop_kind::forward_training, direct, lhs_, any, out_, strides, dilation, low,
        high, attributes);
    if (result_ == kOut) {
      primitive_ = dnnl::convolution_forward(forward);
      Finish(forward.weights_desc(), forward.scratchpad_desc());
    } else if (result_ == kLhs) {
      const dnnl::convolution_backward_data::primitive_desc gradient(
          Cpu(), direct, lhs_, any, out_, strides, dilation, low, high, forward, attributes);
      primitive_ = dnnl::convolution_backward_data(gradient);
      Finish(gradient.weights_desc(), gradient.scratchpad_desc());
    } else {
      const dnnl::convolution_backward_weights::primitive_desc gradient(
          Cpu(), direct, lhs_, any, out_, strides, dilation, low, high, forward, attributes);
      primitive_ = dnnl::convolution_backward_weights(gradient);
      Finish(gradient.diff_weights_desc(), gradient.scratchpad_desc());
    }
  }

  void operator()(const float* lhs, const float* rhs, const float* out) const {
    dnnl::stream stream(Cpu());
    auto array = [](const memory::desc& desc, const void* data) {
      return memory(desc, Cpu(), const_cast<void*>(data));
    };
    auto given = array(rhs_, rhs), ordered = given;
    if (reorder_) ordered = array(ordered_, Workspace(0, ordered_.get_size()));
    const auto scratch =
        array(scratch_, Workspace(1, std::max(scratch_.get_size(), copy_scratch_.get_size())));
    auto copy = [&](const memory& from, const memory& to) {
      reorder_.execute(stream, {{DNNL_ARG_FROM, from},
                                {DNNL_ARG_TO, to},
                                {DNNL_ARG_SCRATCHPAD, array(copy_scratch_, scratch.get_data_handle())}});
    };
    if (reorder_ && result_ != kRhs) copy(given, ordered);
    primitive_.execute(
        stream, {{result_ == kLhs ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, array(lhs_, lhs)},
                 {result_ == kRhs ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, ordered},
                 {result_ == kOut ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, array(out_, out)},
                 {DNNL_ARG_SCRATCHPAD, scratch}});
    if (reorder_ && result_ == kRhs) copy(ordered, given);
    stream.wait();
  }

 private:
  void Finish(const memory::desc& ordered, const memory::desc& scratch) {
    ordered_ = ordered;
    scratch_ = scratch;
    if (ordered_ == rhs_) return;
    const bool back = result_ == kRhs;
    const dnnl::reorder::primitive_desc copy(Cpu(), back ? ordered_ : rhs_, Cpu(),
                                             back ? rhs_ : ordered_, UserWorkspace());
    reorder_ = dnnl::reorder(copy);
    copy_scratch_ = copy.scratchpad_desc();
  }

  Result result_;
  memory::desc lhs_, rhs_, out_, ordered_, scratch_, copy_scratch_;
  dnnl::primitive primitive_;
  dnnl::reorder reorder_;
};

const Convolution& Cached(const Shape& shape) {
  static std::mutex mutex;
  static std::map<Shape, Convolution> cache;  // its elements never move
  std::lock_guard<std::mutex> lock(mutex);
  return cache.try_emplace(shape, shape).first->second;
}

// Runs task(0) to task(count - 1) on the threads of the pool and the calling one; rethrows.
template <typename Task>
void InParallel(ffi::ThreadPool& pool, int64_t threads, int64_t count, const Task& task) {
  struct State {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
    std::exception_ptr error;
  };
  auto state = std::make_shared<State>();  // a helper may start after this call has returned
  auto help = [state, count, &task] {
    for (int64_t index; (index = state->next++) < count;) {
      std::exception_ptr error;
      try {
        OneThread one_thread;
        task(index);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(state->mutex);
      if (error) state->error = error;
      if (++state->done == count) state->all_done.notify_all();
    }
  };
  for (int64_t helper = 1; helper < std::min(threads, count); ++helper) {
    pool.Schedule(decltype(help)(help));
  }
  help();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == count; });
  if (state->error) std::rethrow_exception(state->error);
}

using Floats = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Span<const int64_t>;

// left_members[i] and right_members[i]: which members of the operands make member i of the result.
ffi::Error Contract(ffi::ThreadPool pool, Floats left, Floats right,
                    ffi::ResultBuffer<ffi::F32> result, Numbers numbers, Numbers left_members,
                    Numbers right_members) {
  Shape shape;
  std::copy(numbers.begin(), numbers.end(), shape.begin());
  const int64_t members = left_members.size(), batch = shape[kBatch];
  const int64_t example = shape[kHeight] * shape[kWidth] * shape[kIn];
  const int64_t out_example = shape[kOutHeight] * shape[kOutWidth] * shape[kOutFeatures];
  const int64_t window = shape[kWindowHeight] * shape[kWindowWidth] * shape[kIn] / shape[kGroups] *
                         shape[kOutFeatures];
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t parts = std::min(batch, threads / std::gcd(threads, members));
  const bool sums = shape[kResult] == kRhs && parts > 1;
  std::vector<float> part_sums;
  auto task = [&](int64_t index) {
    const int64_t member = index / parts, part = index % parts;
    const int64_t begin = part * batch / parts, end = (part + 1) * batch / parts;
    const int64_t from_left = left_members[member], from_right = right_members[member];
    const int64_t lhs_member = shape[kResult] == kLhs ? member : from_left;
    const int64_t out_member = shape[kResult] == kOut ? member : from_right;
    const float* lhs = shape[kResult] == kLhs ? result->typed_data() : left.typed_data();
    const float* out = shape[kResult] == kOut ? result->typed_data() : right.typed_data();
    const float* rhs = shape[kResult] == kLhs   ? left.typed_data() + from_left * window
                       : shape[kResult] == kOut ? right.typed_data() + from_right * window
                       : sums                   ? part_sums.data() + index * window
                                                : result->typed_data() + member * window;
    Shape own = shape;
    own[kBatch] = end - begin;
    Cached(own)(lhs + (lhs_member * batch + begin) * example, rhs,
                out + (out_member * batch + begin) * out_example);
  };
  try {
    part_sums.resize(sums ? members * parts * window : 0);
    InParallel(pool, threads, members * parts, task);
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  for (int64_t index = 0; sums && index < members * window; ++index) {
    const float* first = part_sums.data() + index / window * parts * window + index % window;
    float sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += first[part * window];
    result->typed_data()[index] = sum;
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    hwa_jax_convolution, Contract,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>()
        .Attr<Numbers>("numbers").Attr<Numbers>("left_members").Attr<Numbers>("right_members"));
