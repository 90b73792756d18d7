// Latencies of any number of calls, in memory that does not grow with them.

#ifndef SERVING_HOST_LATENCIES_H_
#define SERVING_HOST_LATENCIES_H_

#include <chrono>
#include <vector>

#include "tensorflow/core/lib/histogram/histogram.h"

namespace serving_host {

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

// Percentiles are exact to 1%: so wide are the buckets, from 1 microsecond to an hour.
class Latencies {
 public:
  Latencies() : histogram_(Limits()) {}
  void Add(double seconds) { histogram_.Add(1e3 * seconds); }
  double PercentileMs(double percent) const { return histogram_.Percentile(percent); }

 private:
  static std::vector<double> Limits() {
    std::vector<double> limits;
    for (double ms = 1e-3; ms < 3.6e6; ms *= 1.01) limits.push_back(ms);
    return limits;
  }

  tensorflow::histogram::ThreadSafeHistogram histogram_;
};

}  // namespace serving_host

#endif  // SERVING_HOST_LATENCIES_H_
