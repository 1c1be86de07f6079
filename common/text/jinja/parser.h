// From tokens to the tree of ast.h. What Jinja knows and we don't (include, import, extends, block
// ...) is an error.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/chat_template.h"
#include "common/text/jinja/ast.h"
#include "common/text/jinja/lexer.h"

namespace hearth::jinja {

// InvalidArgument, "line N: what", where the template doesn't parse or nests deeper than the limit,
// and where it has more than 1 MiB.
absl::StatusOr<Block> ParseTemplate(std::string_view source, const TemplateLimits& limits);

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth)
      : tokens_(std::move(tokens)), max_depth_(max_depth) {}

  absl::StatusOr<Block> Template();

 private:
  using Expression = absl::StatusOr<ExprPtr>;
  using Statement = absl::StatusOr<std::unique_ptr<Stmt>>;

  // parser.cc: statements.
  absl::StatusOr<Block> Body(std::initializer_list<std::string_view> end_tags);
  Statement Tag();
  Statement If();
  Statement For();
  Statement Set();
  Statement Macro();
  Statement CallBlock();
  Statement FilterBlock();
  Statement With();
  Statement Generation();
  Statement LoopControl(StmtKind kind);
  absl::Status Signature(MacroNode& macro);
  absl::Status MacroBody(MacroNode& macro, std::string_view end_tag);
  Expression AssignTarget(bool with_namespace);
  Expression OneTarget(bool with_namespace);
  absl::Status EndTag(std::string_view name);  // the rest of {% name %}
  absl::Status BlockEnd();

  // parse_expression.cc: expressions, by falling precedence.
  Expression Conditional();
  Expression Or();
  Expression And();
  Expression Not();
  Expression Compare();
  Expression Sum();
  Expression Concatenation();
  Expression Product();
  Expression Power();
  Expression Unary(bool with_filters = true);
  Expression Primary();
  Expression TupleOrOne(bool with_conditional, bool parenthesised);
  Expression ListLiteral();
  Expression DictLiteral();
  Expression Postfix(ExprPtr expr);
  Expression Filters(ExprPtr expr);
  Expression Filter(ExprPtr expr);
  Expression Test(ExprPtr expr);
  Expression Dot(ExprPtr expr);
  Expression Subscript(ExprPtr expr);
  Expression Slice(ExprPtr expr, ExprPtr start);
  Expression Call(ExprPtr expr);
  absl::Status CallArguments(std::vector<Argument>& arguments);
  absl::StatusOr<bool> ComparisonOperator(std::string& op);
  Expression Node(ExprKind kind, int line, std::string name, std::vector<ExprPtr> children);
  Expression Finish(ExprPtr expr);  // sets the height and checks it
  void NoteName(const std::string& name);

  const Token& Current() const { return tokens_[at_]; }
  const Token& Ahead() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  Token Take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool AtOperator(std::string_view op) const { return Current().Is(TokenType::kOperator, op); }
  bool AtName(std::string_view name) const { return Current().Is(TokenType::kName, name); }
  bool SkipOperator(std::string_view op);
  bool SkipName(std::string_view name);
  absl::Status ExpectOperator(std::string_view op);
  absl::StatusOr<std::string> ExpectName();
  absl::Status Error(const std::string& what) const;
  absl::Status Unexpected() const;
  absl::Status Enter();  // one level deeper; each Enter is paired with a Leave
  void Leave() { --depth_; }

  const std::vector<Token> tokens_;
  const int max_depth_;
  size_t at_ = 0;
  int depth_ = 0;
  int if_depth_ = 0;    // under a condition an unknown filter is an error only once it runs
  int loop_depth_ = 0;  // break and continue need one
  std::vector<MacroNode*> macros_;
};

}  // namespace hearth::jinja
