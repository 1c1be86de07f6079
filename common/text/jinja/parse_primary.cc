// The innermost expressions: literals, names, subscripts and calls.
#include "common/text/jinja/parser.h"
#include "common/text/jinja/runtime.h"

namespace hearth::jinja {

Parser::Expression Parser::Primary() {
  const Token token = Take();
  const auto constant = [&](Value value) {
    auto expr = std::make_unique<Expr>();
    expr->kind = ExprKind::kConstant;
    expr->line = token.line;
    expr->constant = std::move(value);
    return expr;
  };
  if (token.type == TokenType::kInteger || token.type == TokenType::kFloat)
    return constant(token.number);
  if (token.type == TokenType::kString) {
    std::string text = token.text;
    while (Current().type == TokenType::kString) text += Take().text;
    return constant(Value(std::move(text)));
  }
  if (token.type == TokenType::kName) {
    if (token.text == "true" || token.text == "True") return constant(Value(true));
    if (token.text == "false" || token.text == "False") return constant(Value(false));
    if (token.text == "none" || token.text == "None") return constant(Value(None{}));
    NoteName(token.text);
    return Node(ExprKind::kName, token.line, token.text, {});
  }
  if (token.Is(TokenType::kOperator, "(")) {
    HEARTH_ASSIGN_OR_RETURN(ExprPtr expr, TupleOrOne(true, true));
    HEARTH_RETURN_IF_ERROR(ExpectOperator(")"));
    return expr;
  }
  if (token.Is(TokenType::kOperator, "[")) return ListLiteral();
  if (token.Is(TokenType::kOperator, "{")) return DictLiteral();
  if (token.type != TokenType::kEnd) --at_;
  return Unexpected();
}

// One expression, or several with commas, which are a tuple; () is the empty one.
Parser::Expression Parser::TupleOrOne(bool with_conditional, bool parenthesised) {
  const int line = Current().line;
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  while (true) {
    const TokenType type = Current().type;
    if (type == TokenType::kBlockEnd || type == TokenType::kVariableEnd || AtOperator(")")) break;
    if (is_tuple && (AtName("recursive") || AtName("if"))) break;
    ExprPtr item;
    if (with_conditional) {
      HEARTH_ASSIGN_OR_RETURN(item, Conditional());
    } else {
      HEARTH_ASSIGN_OR_RETURN(item, Or());
    }
    items.push_back(std::move(item));
    if (!SkipOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return std::move(items[0]);
  if (!is_tuple && !parenthesised) return Unexpected();
  return Node(ExprKind::kTuple, line, "", std::move(items));
}

Parser::Expression Parser::ListLiteral() {
  const int line = Current().line;
  std::vector<ExprPtr> items;
  while (!AtOperator("]")) {
    if (!items.empty()) HEARTH_RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator("]")) break;
    HEARTH_ASSIGN_OR_RETURN(ExprPtr item, Conditional());
    items.push_back(std::move(item));
  }
  HEARTH_RETURN_IF_ERROR(ExpectOperator("]"));
  return Node(ExprKind::kList, line, "", std::move(items));
}

Parser::Expression Parser::DictLiteral() {
  const int line = Current().line;
  std::vector<ExprPtr> entries;
  while (!AtOperator("}")) {
    if (!entries.empty()) HEARTH_RETURN_IF_ERROR(ExpectOperator(","));
    if (AtOperator("}")) break;
    HEARTH_ASSIGN_OR_RETURN(ExprPtr key, Conditional());
    HEARTH_RETURN_IF_ERROR(ExpectOperator(":"));
    HEARTH_ASSIGN_OR_RETURN(ExprPtr value, Conditional());
    entries.push_back(std::move(key));
    entries.push_back(std::move(value));
  }
  HEARTH_RETURN_IF_ERROR(ExpectOperator("}"));
  return Node(ExprKind::kDict, line, "", std::move(entries));
}

Parser::Expression Parser::Postfix(ExprPtr expr) {
  while (true) {
    if (AtOperator(".")) {
      HEARTH_ASSIGN_OR_RETURN(expr, Dot(std::move(expr)));
    } else if (AtOperator("[")) {
      HEARTH_ASSIGN_OR_RETURN(expr, Subscript(std::move(expr)));
    } else if (AtOperator("(")) {
      HEARTH_ASSIGN_OR_RETURN(expr, Call(std::move(expr)));
    } else {
      return expr;
    }
  }
}

Parser::Expression Parser::Dot(ExprPtr expr) {
  const int line = Take().line;
  const Token token = Take();
  std::vector<ExprPtr> children;
  children.push_back(std::move(expr));
  if (token.type == TokenType::kName)
    return Node(ExprKind::kAttribute, line, token.text, std::move(children));
  if (token.type != TokenType::kInteger) return Error("expected name or number");
  auto index = std::make_unique<Expr>();
  index->kind = ExprKind::kConstant;
  index->constant = token.number;
  children.push_back(std::move(index));
  return Node(ExprKind::kItem, line, "", std::move(children));
}

// [index], [start:stop:step] or [a, b], whose key is a tuple.
Parser::Expression Parser::Subscript(ExprPtr expr) {
  const int line = Take().line;
  std::vector<ExprPtr> keys;
  bool is_tuple = false;
  while (!AtOperator("]")) {
    if (is_tuple) HEARTH_RETURN_IF_ERROR(ExpectOperator(","));
    ExprPtr key;
    if (!AtOperator(":")) {
      HEARTH_ASSIGN_OR_RETURN(key, Conditional());
    }
    if (AtOperator(":")) {
      if (is_tuple) return Error("a slice among several subscripts is not supported");
      return Slice(std::move(expr), std::move(key));
    }
    keys.push_back(std::move(key));
    is_tuple = true;
  }
  if (keys.empty()) return Error("expected subscript expression");
  HEARTH_RETURN_IF_ERROR(ExpectOperator("]"));
  ExprPtr key = std::move(keys[0]);
  if (keys.size() > 1) {
    keys[0] = std::move(key);
    HEARTH_ASSIGN_OR_RETURN(key, Node(ExprKind::kTuple, line, "", std::move(keys)));
  }
  std::vector<ExprPtr> children;
  children.push_back(std::move(expr));
  children.push_back(std::move(key));
  return Node(ExprKind::kItem, line, "", std::move(children));
}

Parser::Expression Parser::Slice(ExprPtr expr, ExprPtr start) {
  const int line = Current().line;
  std::vector<ExprPtr> children(4);
  children[0] = std::move(expr);
  children[1] = std::move(start);
  for (size_t part = 2; part < 4 && SkipOperator(":"); ++part) {
    if (AtOperator(":") || AtOperator("]")) continue;
    HEARTH_ASSIGN_OR_RETURN(children[part], Conditional());
  }
  HEARTH_RETURN_IF_ERROR(ExpectOperator("]"));
  return Node(ExprKind::kSlice, line, "", std::move(children));
}

Parser::Expression Parser::Call(ExprPtr expr) {
  auto call = std::make_unique<Expr>();
  call->kind = ExprKind::kCall;
  call->line = Current().line;
  call->children.push_back(std::move(expr));
  HEARTH_RETURN_IF_ERROR(CallArguments(call->arguments));
  return Finish(std::move(call));
}

absl::Status Parser::CallArguments(std::vector<Argument>& arguments) {
  HEARTH_RETURN_IF_ERROR(ExpectOperator("("));
  bool has_named = false;
  while (!AtOperator(")")) {
    if (!arguments.empty()) {
      HEARTH_RETURN_IF_ERROR(ExpectOperator(","));
      if (AtOperator(")")) break;
    }
    Argument argument;
    if (SkipOperator("*")) {
      argument.kind = ArgumentKind::kSpread;
    } else if (SkipOperator("**")) {
      argument.kind = ArgumentKind::kSpreadNamed;
    } else if (Current().type == TokenType::kName && Ahead().Is(TokenType::kOperator, "=")) {
      argument.kind = ArgumentKind::kNamed;
      argument.name = Take().text;
      ++at_;
    } else if (has_named) {
      return Error("invalid syntax for function call expression");
    }
    has_named |= argument.kind != ArgumentKind::kPositional;
    HEARTH_ASSIGN_OR_RETURN(argument.value, Conditional());
    arguments.push_back(std::move(argument));
  }
  return ExpectOperator(")");
}

}  // namespace hearth::jinja
