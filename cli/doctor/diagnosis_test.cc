#include "cli/doctor/diagnosis.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace hearth::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr uint64_t kGib = uint64_t{1} << 30;

// A desktop on which all is well.
Diagnosis Desktop() {
  Diagnosis d;
  d.machine.cpu_model = "Fast CPU";
  d.machine.usable_cores = 16;
  d.machine.memory_bytes = 64 * kGib;
  d.machine.kernel = "Linux 6.1.0";
  d.machine.features.avx2 = d.machine.features.avx512 = true;
  d.kernels = {"avx512", "avx2"};
  d.physical_cores = 8;
  d.available_bytes = 60 * kGib;
  d.huge_pages = {.anonymous = "madvise", .shmem = "never"};
  d.segment.is_huge = true;
  d.shm_bytes = d.shm_free_bytes = 32 * kGib;
  d.descriptors = 1 << 19;
  d.port = {.host = "127.0.0.1", .port = 8080, .problem = ""};
  return d;
}

ModelCheck Model(uint64_t experts) {
  return {.path = "/models/m",
          .problem = "",
          .n_layers = 48,
          .n_experts = 512,
          .expert_bytes = experts,
          .dense_bytes = 2 * kGib,
          .kv_bytes = 3 * kGib};
}

TEST(Doctor, GoodMachineCanServeAndNeedsNoAdvice) {
  const Diagnosis d = Desktop();
  EXPECT_THAT(Problems(d), IsEmpty());
  EXPECT_THAT(Advice(d), IsEmpty());
  const std::string text = ToText(d);
  EXPECT_THAT(text, AllOf(HasSubstr("avx512 (also avx2)"), HasSubstr("16 usable, 8 physical"),
                          HasSubstr("60.0 GiB available"), HasSubstr("experts       in huge pages"),
                          HasSubstr("127.0.0.1:8080 is free"), HasSubstr("built without CUDA"),
                          HasSubstr("Hearth can serve here.")));
  EXPECT_THAT(text,
              AllOf(Not(HasSubstr("model")), Not(HasSubstr("Faster:")), Not(HasSubstr("GB/s"))));
}

TEST(Doctor, JsonSaysTheSame) {
  Diagnosis d = Desktop();
  d.model = Model(40 * kGib);
  d.gpus = {"NVIDIA X"};
  d.speed.emplace();
  d.speed->readings.push_back({16, {80e9, 79e9, 81e9}});
  const json::object object = ToJson(d);
  EXPECT_EQ(object.at("can_serve"), true);
  EXPECT_EQ(object.at("model").at("needed_bytes").to_number<uint64_t>(), 45 * kGib);
  EXPECT_EQ(object.at("memory").at("limit_bytes"), nullptr);
  EXPECT_EQ(object.at("huge_pages").at("segment"), true);
  EXPECT_EQ(object.at("huge_pages").at("shmem"), "never");
  EXPECT_EQ(object.at("kernels").at(0), "avx512");
  EXPECT_EQ(object.at("advice").as_array().size(), 1u);
  EXPECT_TRUE(object.contains("speed"));
  EXPECT_FALSE(ToJson(Desktop()).contains("speed"));
  EXPECT_THAT(ToText(d), HasSubstr("80.0 GB/s with 16 threads"));
}

TEST(Doctor, ModelThatDoesNotFitIsAProblemWithNumbers) {
  Diagnosis d = Desktop();
  d.model = Model(56 * kGib);
  EXPECT_THAT(Problems(d), ElementsAre(AllOf(HasSubstr("61.0 GiB"), HasSubstr("60.0 GiB are free"),
                                             Not(HasSubstr("control group")))));
  d.model = Model(20 * kGib);
  d.limit_bytes = 10 * kGib;
  EXPECT_THAT(Problems(d), ElementsAre(AllOf(HasSubstr("25.0 GiB"), HasSubstr("10.0 GiB"),
                                             HasSubstr("control group"))));
  EXPECT_THAT(ToText(d), AllOf(HasSubstr("Problem: "), HasSubstr("cannot serve here yet")));
  EXPECT_EQ(ToJson(d).at("can_serve"), false);
}

TEST(Doctor, SmallShmMattersOnlyWhereTheExpertsGoThere) {
  Diagnosis d = Desktop();
  d.model = Model(40 * kGib);
  d.shm_free_bytes = 64 << 20;
  EXPECT_THAT(Problems(d), IsEmpty());
  d.segment = {false, "could not make a user namespace: Operation not permitted"};
  EXPECT_THAT(Problems(d),
              ElementsAre(AllOf(HasSubstr("/dev/shm has 0.1 GiB"), HasSubstr("--shm-size=42g"))));
}

TEST(Doctor, SmallPagesComeWithTheOperatorsCommand) {
  Diagnosis d = Desktop();
  d.segment = {false, "could not make a user namespace: Operation not permitted"};
  d.huge_pages.anonymous = "never";
  EXPECT_THAT(Advice(d),
              ElementsAre(AllOf(HasSubstr("user namespace"), HasSubstr("sudo mount -t tmpfs"),
                                HasSubstr("size=43g"), HasSubstr("--segment /mnt/hearth/experts"),
                                HasSubstr("docker volume create")),
                          HasSubstr("transparent_hugepage/enabled")));
  d.is_root = true;
  EXPECT_THAT(Advice(d).front(), Not(HasSubstr("sudo")));
  EXPECT_THAT(Problems(d), IsEmpty()) << "slower is no reason not to serve";
}

TEST(Doctor, BrokenFolderTakenPortAndFewDescriptorsAreProblems) {
  Diagnosis d = Desktop();
  d.port.problem = "port 8080 is taken";
  d.descriptors = 100;
  d.model = ModelCheck{.path = "/models/m", .problem = "has no config.json"};
  EXPECT_THAT(Problems(d), ElementsAre("port 8080 is taken", HasSubstr("may open 100 files"),
                                       "/models/m: has no config.json"));
  EXPECT_EQ(ToJson(d).at("model").at("problem"), "has no config.json");
}

TEST(Doctor, OldProcessorsAndUnusedGpusAreSaid) {
  Diagnosis d = Desktop();
  d.kernels.clear();
  d.gpus = {"NVIDIA X"};
  EXPECT_THAT(Advice(d), ElementsAre(HasSubstr("no AVX2"), HasSubstr("without CUDA")));
  EXPECT_THAT(ToText(d), AllOf(HasSubstr("the float32 backend"), HasSubstr("NVIDIA X; built")));
}

GpuRates FastGpu() {
  return {.copy = {.alone = 52.1e9, .loaded = 48.2e9, .ram_meanwhile = 101.3e9},
          .zero_copy = {.alone = 44.4e9, .loaded = 0, .ram_meanwhile = 0},
          .memory_bytes_per_second = 3.012e12,
          .handshake_seconds = 1.84e-6};
}

TEST(Doctor, WhatTheGpuWasMeasuredAtIsPrinted) {
  Diagnosis d = Desktop();
  d.has_cuda = true;
  d.gpus = {"NVIDIA X"};
  d.gpu_speed = FastGpu();
  EXPECT_THAT(Advice(d), IsEmpty());
  EXPECT_THAT(ToText(d),
              AllOf(HasSubstr("GPU             NVIDIA X\n"),
                    HasSubstr("copy          52.1 GB/s from memory, 48.2 while threads read 101.3"),
                    HasSubstr("zero copy     44.4 GB/s from memory\n"),
                    HasSubstr("read          3012 GB/s of its own"),
                    HasSubstr("handshake     1.8 us with a CPU thread"), Not(HasSubstr("CUDA"))));
  const json::object object = ToJson(d);
  EXPECT_EQ(object.at("cuda"), true);
  EXPECT_EQ(object.at("gpu_speed"), ToJson(FastGpu()));
  EXPECT_FALSE(object.contains("gpu_problem"));
}

TEST(Doctor, WhatOfTheGpuWasNotMeasuredIsLeftOutOrSaid) {
  Diagnosis d = Desktop();
  d.has_cuda = true;
  EXPECT_THAT(ToText(d), HasSubstr("GPU             none found\n"));
  d.gpu_problem = "no GPU that CUDA can use: no driver";
  EXPECT_THAT(ToText(d),
              HasSubstr("none found; not measured: no GPU that CUDA can use: no driver"));
  EXPECT_EQ(ToJson(d).at("gpu_problem").as_string(), d.gpu_problem);
  EXPECT_FALSE(ToJson(d).contains("gpu_speed"));
  EXPECT_THAT(Problems(d), IsEmpty()) << "the CPU serves";
  d.gpu_problem.clear();
  d.gpu_speed = GpuRates{.copy = {.alone = 1e9}};
  EXPECT_THAT(ToText(d), AllOf(HasSubstr("copy          1.0 GB/s from memory\n"),
                               Not(HasSubstr("zero copy")), Not(HasSubstr("handshake"))));
}

TEST(HugePageState, TakesTheWordInBracketsAndThePool) {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("hearth-mm-" + std::to_string(::getpid()));
  fs::create_directories(root / "transparent_hugepage");
  fs::create_directories(root / "hugepages/hugepages-2048kB");
  std::ofstream(root / "transparent_hugepage/enabled") << "always [madvise] never\n";
  std::ofstream(root / "transparent_hugepage/shmem_enabled") << "garbage\n";
  std::ofstream(root / "hugepages/hugepages-2048kB/nr_hugepages") << "8\n";
  std::ofstream(root / "hugepages/hugepages-2048kB/free_hugepages") << "5\n";
  const HugePageState state = ReadHugePageState(root);
  fs::remove_all(root);
  EXPECT_EQ(state.anonymous, "madvise");
  EXPECT_TRUE(state.gives_anonymous());
  EXPECT_EQ(state.shmem, "unknown");
  EXPECT_EQ(state.pool_bytes, uint64_t{16} << 20);
  EXPECT_EQ(state.pool_free_bytes, uint64_t{10} << 20);
  EXPECT_EQ(ReadHugePageState(root).anonymous, "unknown");
}

}  // namespace
}  // namespace hearth::cli
