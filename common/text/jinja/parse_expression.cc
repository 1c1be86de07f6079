// Expressions, in Jinja's order of precedence (which differs from Python's in places: ~ binds
// tighter than +).
#include <algorithm>

#include "common/text/jinja/builtins.h"
#include "common/text/jinja/parser.h"
#include "common/text/jinja/runtime.h"

namespace hearth::jinja {
namespace {

// A chain like a + b + c ... is as high as it is long; this many times the nesting limit is
// allowed.
constexpr int kHeightFactor = 8;

std::vector<ExprPtr> Children(ExprPtr a, ExprPtr b = nullptr) {
  std::vector<ExprPtr> children;
  children.push_back(std::move(a));
  if (b != nullptr) children.push_back(std::move(b));
  return children;
}

}  // namespace

Parser::Expression Parser::Finish(ExprPtr expr) {
  int height = 0;
  for (const ExprPtr& child : expr->children)
    height = std::max(height, child == nullptr ? 0 : child->height);
  for (const Argument& argument : expr->arguments)
    height = std::max(height, argument.value->height);
  expr->height = height + 1;
  if (expr->height <= kHeightFactor * max_depth_) return expr;
  return Error(Concat("an expression has more than ", std::to_string(kHeightFactor * max_depth_),
                      " nested operators; split it with set"));
}

Parser::Expression Parser::Node(ExprKind kind, int line, std::string name,
                                std::vector<ExprPtr> children) {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  expr->name = std::move(name);
  expr->children = std::move(children);
  return Finish(std::move(expr));
}

void Parser::NoteName(const std::string& name) {
  if (macros_.empty()) return;
  if (name == "varargs") macros_.back()->uses_varargs = true;
  if (name == "kwargs") macros_.back()->uses_kwargs = true;
  if (name == "caller") macros_.back()->uses_caller = true;
}

Parser::Expression Parser::Conditional() {
  HEARTH_RETURN_IF_ERROR(Enter());
  HEARTH_ASSIGN_OR_RETURN(ExprPtr expr, Or());
  while (AtName("if")) {
    const int line = Take().line;
    ++if_depth_;
    HEARTH_ASSIGN_OR_RETURN(ExprPtr condition, Or());
    std::vector<ExprPtr> children = Children(std::move(condition), std::move(expr));
    children.push_back(nullptr);
    if (SkipName("else")) {
      HEARTH_ASSIGN_OR_RETURN(children[2], Conditional());
    }
    --if_depth_;
    HEARTH_ASSIGN_OR_RETURN(expr, Node(ExprKind::kConditional, line, "", std::move(children)));
  }
  Leave();
  return expr;
}

Parser::Expression Parser::Or() {
  HEARTH_ASSIGN_OR_RETURN(ExprPtr left, And());
  while (AtName("or")) {
    const int line = Take().line;
    HEARTH_ASSIGN_OR_RETURN(ExprPtr right, And());
    HEARTH_ASSIGN_OR_RETURN(
        left, Node(ExprKind::kOr, line, "", Children(std::move(left), std::move(right))));
  }
  return left;
}

Parser::Expression Parser::And() {
  HEARTH_ASSIGN_OR_RETURN(ExprPtr left, Not());
  while (AtName("and")) {
    const int line = Take().line;
    HEARTH_ASSIGN_OR_RETURN(ExprPtr right, Not());
    HEARTH_ASSIGN_OR_RETURN(
        left, Node(ExprKind::kAnd, line, "", Children(std::move(left), std::move(right))));
  }
  return left;
}

Parser::Expression Parser::Not() {
  if (!AtName("not")) return Compare();
  const int line = Take().line;
  HEARTH_RETURN_IF_ERROR(Enter());
  HEARTH_ASSIGN_OR_RETURN(ExprPtr operand, Not());
  Leave();
  return Node(ExprKind::kUnary, line, "not", Children(std::move(operand)));
}

absl::StatusOr<bool> Parser::ComparisonOperator(std::string& op) {
  for (const std::string_view symbol : {"==", "!=", "<=", ">=", "<", ">"}) {
    if (!SkipOperator(symbol)) continue;
    op = symbol;
    return true;
  }
  if (SkipName("in")) {
    op = "in";
    return true;
  }
  if (AtName("not") && Ahead().Is(TokenType::kName, "in")) {
    at_ += 2;
    op = "not in";
    return true;
  }
  return false;
}

Parser::Expression Parser::Compare() {
  const int line = Current().line;
  HEARTH_ASSIGN_OR_RETURN(ExprPtr first, Sum());
  auto compare = std::make_unique<Expr>();
  std::string op;
  while (true) {
    HEARTH_ASSIGN_OR_RETURN(const bool found, ComparisonOperator(op));
    if (!found) break;
    if (compare->children.empty()) compare->children.push_back(std::move(first));
    HEARTH_ASSIGN_OR_RETURN(ExprPtr operand, Sum());
    compare->operators.push_back(op);
    compare->children.push_back(std::move(operand));
  }
  if (compare->children.empty()) return first;
  compare->kind = ExprKind::kCompare;
  compare->line = line;
  return Finish(std::move(compare));
}

Parser::Expression Parser::Sum() {
  HEARTH_ASSIGN_OR_RETURN(ExprPtr left, Concatenation());
  while (AtOperator("+") || AtOperator("-")) {
    Token op = Take();
    HEARTH_ASSIGN_OR_RETURN(ExprPtr right, Concatenation());
    HEARTH_ASSIGN_OR_RETURN(left, Node(ExprKind::kBinary, op.line, op.text,
                                       Children(std::move(left), std::move(right))));
  }
  return left;
}

Parser::Expression Parser::Concatenation() {
  const int line = Current().line;
  HEARTH_ASSIGN_OR_RETURN(ExprPtr first, Product());
  if (!AtOperator("~")) return first;
  std::vector<ExprPtr> parts = Children(std::move(first));
  while (SkipOperator("~")) {
    HEARTH_ASSIGN_OR_RETURN(ExprPtr part, Product());
    parts.push_back(std::move(part));
  }
  return Node(ExprKind::kConcat, line, "", std::move(parts));
}

Parser::Expression Parser::Product() {
  HEARTH_ASSIGN_OR_RETURN(ExprPtr left, Power());
  while (AtOperator("*") || AtOperator("/") || AtOperator("//") || AtOperator("%")) {
    Token op = Take();
    HEARTH_ASSIGN_OR_RETURN(ExprPtr right, Power());
    HEARTH_ASSIGN_OR_RETURN(left, Node(ExprKind::kBinary, op.line, op.text,
                                       Children(std::move(left), std::move(right))));
  }
  return left;
}

Parser::Expression Parser::Power() {
  HEARTH_ASSIGN_OR_RETURN(ExprPtr left, Unary());
  while (AtOperator("**")) {
    const int line = Take().line;
    HEARTH_ASSIGN_OR_RETURN(ExprPtr right, Unary());
    HEARTH_ASSIGN_OR_RETURN(
        left, Node(ExprKind::kBinary, line, "**", Children(std::move(left), std::move(right))));
  }
  return left;
}

Parser::Expression Parser::Unary(bool with_filters) {
  ExprPtr expr;
  if (AtOperator("-") || AtOperator("+")) {
    Token op = Take();
    HEARTH_RETURN_IF_ERROR(Enter());
    HEARTH_ASSIGN_OR_RETURN(ExprPtr operand, Unary(false));
    Leave();
    HEARTH_ASSIGN_OR_RETURN(expr,
                            Node(ExprKind::kUnary, op.line, op.text, Children(std::move(operand))));
  } else {
    HEARTH_ASSIGN_OR_RETURN(expr, Primary());
  }
  HEARTH_ASSIGN_OR_RETURN(expr, Postfix(std::move(expr)));
  if (!with_filters) return expr;
  return Filters(std::move(expr));
}

Parser::Expression Parser::Filters(ExprPtr expr) {
  while (true) {
    if (AtOperator("|")) {
      HEARTH_ASSIGN_OR_RETURN(expr, Filter(std::move(expr)));
    } else if (AtName("is")) {
      HEARTH_ASSIGN_OR_RETURN(expr, Test(std::move(expr)));
    } else if (AtOperator("(")) {
      HEARTH_ASSIGN_OR_RETURN(expr, Call(std::move(expr)));
    } else {
      return expr;
    }
  }
}

// | name(arguments). The current token is what stands before the name.
Parser::Expression Parser::Filter(ExprPtr expr) {
  auto filter = std::make_unique<Expr>();
  filter->kind = ExprKind::kFilter;
  filter->line = Take().line;
  HEARTH_ASSIGN_OR_RETURN(filter->name, ExpectName());
  while (SkipOperator(".")) {
    HEARTH_ASSIGN_OR_RETURN(std::string part, ExpectName());
    filter->name += "." + part;
  }
  filter->children.push_back(std::move(expr));
  filter->function = FindFilter(filter->name);
  if (filter->function == nullptr && if_depth_ == 0)
    return Error(Concat("No filter named '", filter->name, "'."));
  if (AtOperator("(")) HEARTH_RETURN_IF_ERROR(CallArguments(filter->arguments));
  return Finish(std::move(filter));
}

Parser::Expression Parser::Test(ExprPtr expr) {
  auto test = std::make_unique<Expr>();
  test->kind = ExprKind::kTest;
  test->line = Take().line;
  const bool negated = SkipName("not");
  HEARTH_ASSIGN_OR_RETURN(test->name, ExpectName());
  test->children.push_back(std::move(expr));
  test->function = FindTest(test->name);
  if (test->function == nullptr && if_depth_ == 0)
    return Error(Concat("No test named '", test->name, "'."));
  const TokenType next = Current().type;
  const bool is_operand = next == TokenType::kName || next == TokenType::kString ||
                          next == TokenType::kInteger || next == TokenType::kFloat ||
                          AtOperator("[") || AtOperator("{");
  if (AtOperator("(")) {
    HEARTH_RETURN_IF_ERROR(CallArguments(test->arguments));
  } else if (is_operand && !AtName("else") && !AtName("or") && !AtName("and")) {
    if (AtName("is")) return Error("You cannot chain multiple tests with is");
    HEARTH_ASSIGN_OR_RETURN(ExprPtr operand, Primary());
    HEARTH_ASSIGN_OR_RETURN(operand, Postfix(std::move(operand)));
    test->arguments.push_back({ArgumentKind::kPositional, "", std::move(operand)});
  }
  const int line = test->line;
  HEARTH_ASSIGN_OR_RETURN(expr, Finish(std::move(test)));
  if (!negated) return expr;
  return Node(ExprKind::kUnary, line, "not", Children(std::move(expr)));
}

}  // namespace hearth::jinja
