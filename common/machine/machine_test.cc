#include <cmath>

#include "common/machine/machine_info.h"
#include "common/machine/machine_speed.h"
#include "common/machine/ram_readers.h"
#include "common/machine/statistics.h"
#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Statistics, MedianIsTheMiddleOrTheMeanOfTheMiddleTwo) {
  const double odd[] = {9, 1, 5}, even[] = {4, 1, 2, 9};
  EXPECT_EQ(Summarise(odd).median, 5);
  EXPECT_EQ(Summarise(odd).min, 1);
  EXPECT_EQ(Summarise(odd).max, 9);
  EXPECT_EQ(Summarise(even).median, 3);
  const double one[] = {7};
  EXPECT_EQ(Summarise(one).median, 7);
  EXPECT_EQ(Summarise({}).median, 0);
}

TEST(Statistics, PercentilesAreValuesThatWereMeasured) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(Percentile(values, 0.5), 50);
  EXPECT_EQ(Percentile(values, 0.95), 95);
  EXPECT_EQ(Percentile(values, 0.99), 99);
  EXPECT_EQ(Percentile(values, 1), 100);
  EXPECT_EQ(Percentile(values, 0.001), 1);
  const double two[] = {10, 20};
  EXPECT_EQ(Percentile(two, 0.5), 10);
  EXPECT_EQ(Percentile(two, 0.51), 20);
  EXPECT_EQ(Percentile({}, 0.5), 0);
}

TEST(MachineSpeed, ThreadsAreCountedInPowersOfTwoUpToAll) {
  EXPECT_THAT(ThreadCounts(1), ElementsAre(1));
  EXPECT_THAT(ThreadCounts(2), ElementsAre(1, 2));
  EXPECT_THAT(ThreadCounts(6), ElementsAre(1, 2, 4, 6));
  EXPECT_THAT(ThreadCounts(8), ElementsAre(1, 2, 4, 8));
}

constexpr SpeedOptions kQuick{
    .time = std::chrono::milliseconds(5), .repetitions = 3, .buffer_bytes = 8 << 20};

// Whatever machine this is: rates are positive, ordered, and within what hardware of this century
// does.
TEST(MachineSpeed, EveryRateIsPlausible) {
  ASSERT_OK_AND_ASSIGN(const MachineSpeed speed, MeasureMachine(2, kQuick));
  ASSERT_EQ(speed.readings.size(), 2U);
  for (const auto& reading : speed.readings) {
    EXPECT_GT(reading.bytes_per_second.min, 1e7);
    EXPECT_LE(reading.bytes_per_second.min, reading.bytes_per_second.median);
    EXPECT_LE(reading.bytes_per_second.median, reading.bytes_per_second.max);
    EXPECT_LT(reading.bytes_per_second.max, 1e13);
  }
  if (ThisCpu().avx2) {
    EXPECT_GE(speed.rates.size(), 4U);
  }
  for (const ComputeRate& rate : speed.rates) {
    EXPECT_GT(rate.operations_per_second.min, 1e7) << rate.name;
    EXPECT_LT(rate.operations_per_second.max, 1e14) << rate.name;
  }
  const json::object object = ToJson(speed);
  EXPECT_EQ(object.at("read_bandwidth").as_array().size(), 2U);
  EXPECT_THAT(ToText(speed), HasSubstr("reading memory"));
}

TEST(MachineSpeed, ABufferBeyondTheMemoryIsRefused) {
  EXPECT_THAT(MeasureReadBandwidth(1, {.buffer_bytes = uint64_t{1} << 50}),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("measuring memory needs")));
}

TEST(MachineInfo, SaysWhatThisIs) {
  const json::object object = ToJson(ThisMachine());
  EXPECT_GE(object.at("cores").as_int64(), 1);
  EXPECT_GT(object.at("memory_bytes").to_number<double>(), 1e8);
  EXPECT_THAT(std::string(object.at("kernel").as_string()), HasSubstr("Linux"));
  EXPECT_FALSE(ThisBuild().commit.empty());
}

TEST(RamReaders, ReadUntilTheyAreEnded) {
  ASSERT_OK_AND_ASSIGN(auto readers, RamReaders::Start(2, 8 << 20));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  double rate = 0;
  while (rate < 1e7 && std::chrono::steady_clock::now() < deadline) rate = readers->TakeRate();
  EXPECT_GE(rate, 1e7);
  EXPECT_LT(rate, 1e13);
  readers.reset();  // joins
}

TEST(RamReaders, MemoryThatIsNotThereIsAnError) {
  EXPECT_FALSE(RamReaders::Start(1, uint64_t{1} << 50).ok());
}

}  // namespace
}  // namespace hearth
