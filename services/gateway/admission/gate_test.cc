#include "services/gateway/admission/gate.h"

#include <gtest/gtest.h>

namespace hearth::gateway {
namespace {

TEST(Gate, WhatDoesNotFitIsRefusedAndTakesNothing) {
  Gate gate(3);
  const auto two = gate.TryEnter(2);
  ASSERT_TRUE(two);
  EXPECT_FALSE(gate.TryEnter(2));
  EXPECT_EQ(gate.used(), 2);
  EXPECT_TRUE(gate.TryEnter(1));
}

TEST(Gate, ATicketGivesItsUnitsBackOnceHoweverItIsMoved) {
  Gate gate(10);
  {
    auto first = gate.TryEnter(4);
    Gate::Ticket moved = std::move(*first);
    Gate::Ticket other;
    other = std::move(moved);
    EXPECT_EQ(gate.used(), 4);
  }
  EXPECT_EQ(gate.used(), 0);
}

TEST(Gate, ATicketGrowsWithinTheLimitOnly) {
  Gate gate(10);
  {
    auto ticket = gate.TryEnter(4);
    EXPECT_TRUE(ticket->Grow(6));
    EXPECT_FALSE(ticket->Grow(1));
    EXPECT_EQ(gate.used(), 10);
  }
  EXPECT_EQ(gate.used(), 0);
  Gate::Ticket none;
  EXPECT_FALSE(none.Grow(1));
}

TEST(Gate, AnAssignedTicketGivesBackWhatItHeld) {
  Gate gate(10);
  auto a = gate.TryEnter(3);
  {
    auto b = gate.TryEnter(5);
    *a = std::move(*b);
  }
  EXPECT_EQ(gate.used(), 5);
}

}  // namespace
}  // namespace hearth::gateway
