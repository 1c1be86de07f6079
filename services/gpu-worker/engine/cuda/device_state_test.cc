// Who has which page and place. A model without layers needs no memory, so no device either.
#include "services/gpu-worker/engine/cuda/device_state.h"

#include <set>

#include "common/testing/status_matchers.h"

namespace hearth::worker {
namespace {

std::shared_ptr<DeviceState> Make(int n_pages, int max_sequences) {
  DeviceStateShape shape;
  shape.page_tokens = 64;
  shape.n_pages = n_pages;
  shape.max_sequences = max_sequences;
  auto state = DeviceState::Create(shape);
  EXPECT_OK(state);
  return *std::move(state);
}

TEST(DeviceState, PagesAreTakenAsTokensComeAndGivenBackAtTheEnd) {
  const auto state = Make(5, 2);
  auto first = std::make_unique<CudaSequence>(state);
  EXPECT_EQ(first->PagesNeeded(0), 0);
  EXPECT_EQ(first->PagesNeeded(64), 1);
  EXPECT_EQ(first->PagesNeeded(65), 2);
  first->Grow(65);
  EXPECT_EQ(state->pages_free(), 3);
  EXPECT_EQ(first->n_tokens(), 0);
  EXPECT_EQ(first->PagesNeeded(65), 0);  // they are there, whether or not the step ends well
  first->Advance(65);
  EXPECT_EQ(first->PagesNeeded(63), 0);
  EXPECT_EQ(first->PagesNeeded(64), 1);
  CudaSequence second(state);
  second.Grow(180);
  EXPECT_EQ(state->pages_free(), 0);
  std::set<int32_t> pages(first->pages().begin(), first->pages().end());
  pages.insert(second.pages().begin(), second.pages().end());
  EXPECT_EQ(pages, (std::set<int32_t>{0, 1, 2, 3, 4}));
  first.reset();
  EXPECT_EQ(state->pages_free(), 2);
}

TEST(DeviceState, WhatIsTakenBackGivesItsPagesBack) {
  const auto state = Make(5, 2);
  CudaSequence sequence(state);
  sequence.Grow(63);
  sequence.Advance(63);
  EXPECT_EQ(sequence.n_pending(), 0);
  const uint64_t before = sequence.pages_version();
  sequence.Grow(4);
  sequence.Advance(4, /*n_drafts=*/3);
  EXPECT_NE(sequence.pages_version(), before);
  EXPECT_EQ(sequence.n_tokens(), 67);
  EXPECT_EQ(sequence.n_pending(), 3);
  EXPECT_EQ(state->pages_free(), 3);
  sequence.Rollback(2);
  EXPECT_EQ(sequence.n_tokens(), 65);
  EXPECT_EQ(sequence.n_pending(), 1);
  EXPECT_EQ(state->pages_free(), 3);
  const uint64_t grown = sequence.pages_version();
  sequence.Rollback(1);
  EXPECT_EQ(sequence.n_tokens(), 64);
  EXPECT_EQ(state->pages_free(), 4);
  // The second page may be another one the next time, with as many of them.
  EXPECT_NE(sequence.pages_version(), grown);
  CudaSequence other(state);
  other.Grow(1);
  sequence.Grow(1);
  EXPECT_NE(sequence.pages()[1], other.pages()[0]);
}

TEST(DeviceState, HalvesOfKeptRowsTakeTurns) {
  const auto state = Make(5, 2);
  CudaSequence sequence(state);
  sequence.Grow(9);
  const int half = sequence.kept_half();
  sequence.Advance(2, 1);
  EXPECT_NE(sequence.kept_half(), half);
  sequence.Rollback(1);
  EXPECT_NE(sequence.kept_half(), half);
  sequence.set_n_guessed(1);
  sequence.Advance(1);
  EXPECT_EQ(sequence.kept_half(), half);
  EXPECT_EQ(sequence.n_guessed(), 0);
}

TEST(DeviceState, PlacesAreGivenOnceUntilTheyAreFreeAgain) {
  auto state = Make(1, 2);
  auto first = std::make_unique<CudaSequence>(state);
  auto second = std::make_unique<CudaSequence>(state);
  EXPECT_NE(first->place(), second->place());
  auto third = std::make_unique<CudaSequence>(state);
  EXPECT_EQ(third->place(), -1);
  const int place = first->place();
  first.reset();
  third.reset();  // gives back nothing
  const CudaSequence fourth(state);
  EXPECT_EQ(fourth.place(), place);
  EXPECT_EQ(CudaSequence(state).place(), -1);
  EXPECT_NE(fourth.id(), second->id());
  // Sequences may outlive all else.
  state.reset();
  second.reset();
}

}  // namespace
}  // namespace hearth::worker
