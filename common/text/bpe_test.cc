#include "common/text/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

namespace hearth {
namespace {

// A vocabulary over three letters with random merges; ids 0 to 255 are the bytes.
struct RandomModel {
  std::array<int32_t, 256> byte_ids{};
  std::vector<Bpe::Merge> merges;
  std::vector<std::string> tokens;

  explicit RandomModel(std::mt19937& random) {
    std::map<std::string, int32_t> ids;
    for (int byte = 0; byte < 256; ++byte) {
      byte_ids[byte] = byte;
      tokens.push_back(std::string(1, static_cast<char>(byte)));
    }
    for (const char c : std::string_view("abc")) ids[std::string(1, c)] = c;
    for (int i = 0; i < 40; ++i) {
      const auto pick = [&] { return std::next(ids.begin(), random() % ids.size()); };
      const auto left = pick(), right = pick();
      const std::string joined = left->first + right->first;
      const auto [result, is_new] = ids.emplace(joined, static_cast<int32_t>(tokens.size()));
      if (is_new) tokens.push_back(joined);
      merges.push_back({left->second, right->second, result->second});
    }
    std::shuffle(merges.begin(), merges.end(), random);  // results may rank before their parts
  }
};

// The definition: merge the leftmost pair of the best rank until no pair has one.
std::vector<int32_t> EncodeNaive(const RandomModel& model, std::string_view piece) {
  std::map<std::pair<int32_t, int32_t>, size_t> ranks;
  for (size_t i = 0; i < model.merges.size(); ++i) {
    ranks[{model.merges[i].left, model.merges[i].right}] = i;
  }
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(static_cast<uint8_t>(c));
  while (true) {
    size_t best_rank = SIZE_MAX, best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found != ranks.end() && found->second < best_rank) best_rank = found->second, best = i;
    }
    if (best_rank == SIZE_MAX) return ids;
    ids[best] = model.merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<int64_t>(best) + 1);
  }
}

TEST(Bpe, EqualsTheDefinitionForShortAndLongPieces) {
  std::mt19937 random(3);
  int n_long_merged = 0;
  for (int round = 0; round < 300; ++round) {
    const RandomModel model(random);
    const Bpe bpe(model.byte_ids, model.merges);
    Bpe::Scratch scratch;  // used again: no piece may leave anything behind
    for (int i = 0; i < 8; ++i) {
      std::string piece(random() % 100, 'a');
      for (char& c : piece) c = static_cast<char>('a' + random() % 3);
      std::vector<int32_t> ids;
      bpe.Encode(piece, scratch, ids);
      ASSERT_EQ(ids, EncodeNaive(model, piece)) << "round " << round << ": " << piece;
      n_long_merged += piece.size() > 32 && ids.size() < piece.size();
    }
  }
  EXPECT_GT(n_long_merged, 500);
}

TEST(Bpe, AppendsToWhatIsThere) {
  std::mt19937 random(5);
  const RandomModel model(random);
  const Bpe bpe(model.byte_ids, {});
  Bpe::Scratch scratch;
  std::vector<int32_t> ids = {7};
  bpe.Encode("", scratch, ids);
  bpe.Encode("ab", scratch, ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{7, 'a', 'b'}));
}

}  // namespace
}  // namespace hearth
