#include "common/machine/machine_rates.h"

#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

using testing::IsStatus;

class MachineRatesTest : public ::testing::Test {
 protected:
  ~MachineRatesTest() override {
    std::filesystem::remove(file_);
    for (const char* name : {"XDG_CACHE_HOME", "HOME"}) Set(name, nullptr);
  }
  absl::StatusOr<MachineRates> Read(std::string_view text) {
    EXPECT_OK(WriteFileAtomically(file_, text));
    return ReadMachineRates(file_);
  }
  static void Set(const char* name, const char* value) {
    if (value == nullptr) {
      ::unsetenv(name);
    } else {
      ::setenv(name, value, 1);
    }
  }
  const std::filesystem::path file_ = absl::StrCat("/tmp/hearth-rates-", ::getpid(), ".json");
};

TEST_F(MachineRatesTest, TakesTheFastestReadingAndTheGpus) {
  ASSERT_OK_AND_ASSIGN(const MachineRates rates, Read(R"({"speed": {"read_bandwidth": [
      {"threads": 1, "bytes_per_second": {"median": 20e9, "min": 1, "max": 99e9}},
      {"threads": 8, "bytes_per_second": {"median": 81e9}},
      {"threads": 16, "bytes_per_second": {"median": 78e9}}]},
      "gpu_speed": {"pcie_bytes_per_second": 52e9, "memory_bytes_per_second": 3.1e12,
                    "handshake_seconds": 3.4e-6}})"));
  EXPECT_EQ(rates.ram, 81e9);
  EXPECT_EQ(rates.pcie, 52e9);
  EXPECT_EQ(rates.zero_copy, 52e9) << "a file of the time before it was measured";
  EXPECT_EQ(rates.vram, 3.1e12);
  EXPECT_EQ(rates.handshake_seconds, 3.4e-6);
  EXPECT_EQ(rates.source, file_.string());
}

TEST_F(MachineRatesTest, WhatWasNotMeasuredKeepsItsDefault) {
  const MachineRates defaults;
  EXPECT_EQ(defaults.source, "defaults");
  for (const char* text :
       {"{}", R"({"speed": {"read_bandwidth": []}})", R"({"speed": 5, "gpu_speed": []})",
        R"({"speed": {"read_bandwidth": [{"bytes_per_second": {"median": "fast"}}, 7]}})",
        R"({"gpu_speed": {"pcie_bytes_per_second": -1, "memory_bytes_per_second": 0}})"}) {
    ASSERT_OK_AND_ASSIGN(const MachineRates rates, Read(text));
    EXPECT_EQ(rates.ram, defaults.ram) << text;
    EXPECT_EQ(rates.pcie, defaults.pcie) << text;
    EXPECT_EQ(rates.vram, defaults.vram) << text;
  }
  EXPECT_THAT(Read("[]"), IsStatus(absl::StatusCode::kInvalidArgument, ::testing::_));
  EXPECT_THAT(Read("{"), IsStatus(absl::StatusCode::kInvalidArgument, ::testing::_));
  std::filesystem::remove(file_);
  EXPECT_THAT(ReadMachineRates(file_), IsStatus(absl::StatusCode::kNotFound, ::testing::_));
}

TEST_F(MachineRatesTest, GpusRatesAreReadAsTheyAreWritten) {
  const GpuRates gpu{.copy = {.alone = 5e10, .loaded = 4e10, .ram_meanwhile = 9e10},
                     .zero_copy = {.alone = 4.5e10, .loaded = 3e10, .ram_meanwhile = 9e10},
                     .memory_bytes_per_second = 0,
                     .handshake_seconds = 4e-6};
  const json::object object = ToJson(gpu);
  EXPECT_EQ(object.size(), 7u) << SerializeJson(object);
  ASSERT_OK_AND_ASSIGN(const MachineRates rates,
                       Read(SerializeJson(json::object{{"gpu_speed", object}})));
  EXPECT_EQ(rates.pcie, 4e10) << "copies go on while the CPU reads";
  EXPECT_EQ(rates.zero_copy, 3e10);
  EXPECT_EQ(rates.handshake_seconds, 4e-6);
  EXPECT_EQ(rates.vram, MachineRates{}.vram);
}

TEST_F(MachineRatesTest, WhatWasMeasuredAloneCountsWhereNothingElseWas) {
  const GpuRates gpu{.copy = {.alone = 5e10}, .zero_copy = {.alone = 4e10}};
  ASSERT_OK_AND_ASSIGN(const MachineRates rates,
                       Read(SerializeJson(json::object{{"gpu_speed", ToJson(gpu)}})));
  EXPECT_EQ(rates.pcie, 5e10);
  EXPECT_EQ(rates.zero_copy, 4e10);
}

TEST_F(MachineRatesTest, FormerMeasurementsOfTheGpuAreKeptUntilThereAreNewOnes) {
  const json::object former = {{"gpu_speed", {{"pcie_bytes_per_second", 5e10}}}, {"speed", 1}};
  ASSERT_OK(WriteFileAtomically(file_, SerializeJson(former)));
  json::object findings = {{"cuda", false}};
  KeepWhatWasMeasured(file_, &findings);
  EXPECT_EQ(findings, (json::object{{"cuda", false}, {"gpu_speed", former.at("gpu_speed")}}));
  const json::object measured = {{"gpu_speed", {{"handshake_seconds", 1e-6}}}};
  findings = measured;
  KeepWhatWasMeasured(file_, &findings);
  EXPECT_EQ(findings, measured);
  for (const char* text : {"", "[]", R"({"speed": 1})"}) {
    ASSERT_OK(WriteFileAtomically(file_, text));
    findings = {};
    KeepWhatWasMeasured(file_, &findings);
    EXPECT_TRUE(findings.empty()) << text;
  }
}

TEST_F(MachineRatesTest, FileLiesInTheUsersCache) {
  Set("HOME", "/home/u");
  EXPECT_EQ(MachineFile(), "/home/u/.cache/hearth/machine.json");
  Set("XDG_CACHE_HOME", "/cache");
  EXPECT_EQ(MachineFile(), "/cache/hearth/machine.json");
  Set("XDG_CACHE_HOME", "relative");
  EXPECT_EQ(MachineFile(), "/home/u/.cache/hearth/machine.json");
  Set("HOME", nullptr);
  EXPECT_EQ(MachineFile(), std::nullopt);
  EXPECT_EQ(ThisMachinesRates().source, "defaults");
}

}  // namespace
}  // namespace hearth
