#include "common/base/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "common/base/page_buffer.h"
#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FakeSys : public ::testing::Test {
 protected:
  FakeSys() : root_(fs::temp_directory_path() / ("hearth-numa-" + std::to_string(::getpid()))) {
    fs::create_directories(root_);
  }
  ~FakeSys() override { fs::remove_all(root_); }
  void Put(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  const fs::path root_;
};

TEST(ParseNumberList, TakesRangesAndLeavesOutWhatItCannotRead) {
  EXPECT_THAT(ParseNumberList("0-3,8, 10-11\n"), ElementsAre(0, 1, 2, 3, 8, 10, 11));
  EXPECT_THAT(ParseNumberList("5"), ElementsAre(5));
  EXPECT_THAT(ParseNumberList(""), IsEmpty());
  EXPECT_THAT(ParseNumberList("a,1-x,7,-2,3-1"), ElementsAre(7));
}

using MemoryNodesTest = FakeSys;
TEST_F(MemoryNodesTest, AreThoseThatThisProcessMayUse) {
  Put("status", "Name:\tx\nMems_allowed:\t3\nMems_allowed_list:\t0-1\nThreads: 1\n");
  EXPECT_THAT(MemoryNodes(root_ / "status"), ElementsAre(0, 1));
  EXPECT_THAT(MemoryNodes(root_ / "none"), ElementsAre(0));
  EXPECT_FALSE(MemoryNodes().empty());
}

using ReadPlacesTest = FakeSys;
TEST_F(ReadPlacesTest, KnowSiblingsPackagesAndNodes) {
  for (const int cpu : {0, 1, 2, 3}) {
    const std::string folder = "cpu" + std::to_string(cpu) + "/";
    Put(folder + "topology/physical_package_id", std::to_string(cpu % 2) + "\n");
    Put(folder + "topology/thread_siblings_list", cpu % 2 == 0 ? "0,2\n" : "1,3\n");
    Put(folder + "node" + std::to_string(cpu % 2) + "/cpumap", "x");
  }
  using Place = ProcessorPlace;
  EXPECT_THAT(ReadPlaces({0, 3, 9}, root_),
              ElementsAre(Place{.cpu = 0, .package = 0, .core = 0, .node = 0},
                          Place{.cpu = 3, .package = 1, .core = 1, .node = 1},
                          Place{.cpu = 9, .package = 0, .core = 9, .node = 0}));
}

TEST(PinningOrder, TakesEveryCoreBeforeASibling) {
  // Numbered as most desktop processors are: siblings side by side.
  std::vector<ProcessorPlace> places;
  for (int cpu = 0; cpu < 8; ++cpu) places.push_back({.cpu = cpu, .core = cpu / 2 * 2});
  EXPECT_THAT(PinningOrder(places), ElementsAre(0, 2, 4, 6, 1, 3, 5, 7));
}

TEST(PinningOrder, TakesTheNodesInTurnAndSiblingsLast) {
  // Two nodes of two cores; siblings are numbered after all cores, as servers do.
  std::vector<ProcessorPlace> places;
  for (int cpu = 7; cpu >= 0; --cpu) {
    const int core = cpu % 4;
    places.push_back({.cpu = cpu, .package = core / 2, .core = core, .node = core / 2});
  }
  EXPECT_THAT(PinningOrder(places), ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
}

TEST(PinningOrder, UnequalNodesAreFilledToTheEnd) {
  EXPECT_THAT(PinningOrder({{.cpu = 0, .core = 0, .node = 0},
                            {.cpu = 1, .core = 1, .node = 1},
                            {.cpu = 2, .core = 2, .node = 1},
                            {.cpu = 3, .core = 3, .node = 1}}),
              ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(PinningOrder({}), IsEmpty());
}

TEST(InterleaveOverNodes, MemoryStaysUsable) {
  ASSERT_OK_AND_ASSIGN(const PageBuffer buffer, PageBuffer::Reserve(4 << 20));
  InterleaveOverNodes(buffer.data(), buffer.bytes());
  buffer.data()[0] = std::byte{1};
  EXPECT_EQ(buffer.data()[0], std::byte{1});
}

}  // namespace
}  // namespace hearth
