#include "common/text/jinja/parser.h"

#include <algorithm>

#include "common/text/jinja/runtime.h"

namespace hearth::jinja {
namespace {

std::unique_ptr<Stmt> MakeStmt(StmtKind kind, int line) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = kind;
  stmt->line = line;
  return stmt;
}

std::string Describe(const Token& token) {
  switch (token.type) {
    case TokenType::kEnd:
      return "end of template";
    case TokenType::kBlockEnd:
      return "end of statement block";
    case TokenType::kVariableEnd:
      return "end of print statement";
    case TokenType::kString:
      return "a string";
    case TokenType::kData:
      return "template data";
    default:
      return Concat("'", token.text, "'");
  }
}

}  // namespace

bool Parser::SkipOperator(std::string_view op) {
  if (!AtOperator(op)) return false;
  ++at_;
  return true;
}

bool Parser::SkipName(std::string_view name) {
  if (!AtName(name)) return false;
  ++at_;
  return true;
}

absl::Status Parser::Error(const std::string& what) const {
  return Fail("line ", std::to_string(Current().line), ": ", what);
}

absl::Status Parser::Unexpected() const { return Error("unexpected " + Describe(Current())); }

absl::Status Parser::ExpectOperator(std::string_view op) {
  if (SkipOperator(op)) return absl::OkStatus();
  return Error(Concat("expected '", op, "', got ", Describe(Current())));
}

absl::StatusOr<std::string> Parser::ExpectName() {
  if (Current().type == TokenType::kName) return Take().text;
  return Error(Concat("expected a name, got ", Describe(Current())));
}

absl::Status Parser::Enter() {
  if (++depth_ <= max_depth_) return absl::OkStatus();
  return Error(
      Concat("nested deeper than ", std::to_string(max_depth_), " levels; simplify the template"));
}

absl::Status Parser::BlockEnd() {
  if (Current().type != TokenType::kBlockEnd) {
    return Error(Concat("expected end of statement block, got ", Describe(Current())));
  }
  ++at_;
  return absl::OkStatus();
}

absl::Status Parser::EndTag(std::string_view name) {
  if (!SkipName(name)) return Unexpected();
  return BlockEnd();
}

absl::StatusOr<Block> Parser::Template() {
  HEARTH_ASSIGN_OR_RETURN(Block block, Body({}));
  if (Current().type != TokenType::kEnd) return Unexpected();
  return block;
}

// Statements up to one of the end tags, whose name is then the current token; without any, up to
// the template's end.
absl::StatusOr<Block> Parser::Body(std::initializer_list<std::string_view> end_tags) {
  HEARTH_RETURN_IF_ERROR(Enter());
  Block block;
  while (Current().type != TokenType::kEnd) {
    const Token token = Take();
    auto stmt = MakeStmt(StmtKind::kData, token.line);
    if (token.type == TokenType::kData) {
      stmt->text = token.text;
    } else if (token.type == TokenType::kVariableBegin) {
      stmt->kind = StmtKind::kPrint;
      HEARTH_ASSIGN_OR_RETURN(stmt->expr, TupleOrOne(true, false));
      if (Take().type != TokenType::kVariableEnd) {
        --at_;
        return Error(Concat("expected end of print statement, got ", Describe(Current())));
      }
    } else {
      if (std::any_of(end_tags.begin(), end_tags.end(),
                      [&](std::string_view tag) { return AtName(tag); })) {
        Leave();
        return block;
      }
      HEARTH_ASSIGN_OR_RETURN(stmt, Tag());
    }
    block.push_back(std::move(stmt));
  }
  if (end_tags.size() > 0) {
    return Error(Concat("unexpected end of template: '", *(end_tags.end() - 1), "' is missing"));
  }
  Leave();
  return block;
}

Parser::Statement Parser::Tag() {
  if (AtName("if")) return If();
  if (AtName("for")) return For();
  if (AtName("set")) return Set();
  if (AtName("macro")) return Macro();
  if (AtName("call")) return CallBlock();
  if (AtName("filter")) return FilterBlock();
  if (AtName("with")) return With();
  if (AtName("generation")) return Generation();
  if (AtName("break")) return LoopControl(StmtKind::kBreak);
  if (AtName("continue")) return LoopControl(StmtKind::kContinue);
  if (Current().type != TokenType::kName)
    return Error(Concat("tag name expected, got ", Describe(Current())));
  return Error(Concat("unknown or unsupported tag '", Current().text, "'"));
}

Parser::Statement Parser::If() {
  auto stmt = MakeStmt(StmtKind::kIf, Current().line);
  ++if_depth_;
  do {
    Branch branch;
    const bool is_else = Take().text == "else";
    if (!is_else) {
      HEARTH_ASSIGN_OR_RETURN(branch.condition, TupleOrOne(false, false));
    }
    HEARTH_RETURN_IF_ERROR(BlockEnd());
    if (is_else) {
      HEARTH_ASSIGN_OR_RETURN(branch.body, Body({"endif"}));
    } else {
      HEARTH_ASSIGN_OR_RETURN(branch.body, Body({"elif", "else", "endif"}));
    }
    stmt->branches.push_back(std::move(branch));
  } while (!AtName("endif"));
  --if_depth_;
  HEARTH_RETURN_IF_ERROR(EndTag("endif"));
  return stmt;
}

Parser::Statement Parser::For() {
  auto stmt = MakeStmt(StmtKind::kFor, Take().line);
  HEARTH_ASSIGN_OR_RETURN(stmt->target, AssignTarget(false));
  if (!SkipName("in")) return Error(Concat("expected 'in', got ", Describe(Current())));
  HEARTH_ASSIGN_OR_RETURN(stmt->expr, TupleOrOne(false, false));
  if (SkipName("if")) {
    HEARTH_ASSIGN_OR_RETURN(stmt->filter, Conditional());
  }
  if (AtName("recursive"))
    return Error("recursive loops are not supported; use a macro that calls itself");
  HEARTH_RETURN_IF_ERROR(BlockEnd());
  ++loop_depth_;
  HEARTH_ASSIGN_OR_RETURN(stmt->body, Body({"else", "endfor"}));
  --loop_depth_;
  if (SkipName("else")) {
    HEARTH_RETURN_IF_ERROR(BlockEnd());
    HEARTH_ASSIGN_OR_RETURN(stmt->orelse, Body({"endfor"}));
  }
  HEARTH_RETURN_IF_ERROR(EndTag("endfor"));
  return stmt;
}

Parser::Statement Parser::Set() {
  auto stmt = MakeStmt(StmtKind::kSet, Take().line);
  HEARTH_ASSIGN_OR_RETURN(stmt->target, AssignTarget(true));
  if (SkipOperator("=")) {
    HEARTH_ASSIGN_OR_RETURN(stmt->expr, TupleOrOne(true, false));
    HEARTH_RETURN_IF_ERROR(BlockEnd());
    return stmt;
  }
  stmt->kind = StmtKind::kSetBlock;
  while (AtOperator("|")) {
    HEARTH_ASSIGN_OR_RETURN(stmt->expr, Filter(std::move(stmt->expr)));
  }
  HEARTH_RETURN_IF_ERROR(BlockEnd());
  HEARTH_ASSIGN_OR_RETURN(stmt->body, Body({"endset"}));
  HEARTH_RETURN_IF_ERROR(EndTag("endset"));
  return stmt;
}

Parser::Expression Parser::OneTarget(bool with_namespace) {
  const int line = Current().line;
  if (SkipOperator("(")) {
    HEARTH_RETURN_IF_ERROR(Enter());
    HEARTH_ASSIGN_OR_RETURN(ExprPtr target, AssignTarget(false));
    Leave();
    HEARTH_RETURN_IF_ERROR(ExpectOperator(")"));
    return target;
  }
  HEARTH_ASSIGN_OR_RETURN(std::string name, ExpectName());
  static constexpr std::string_view kConstants[] = {"true", "false", "none",
                                                    "True", "False", "None"};
  if (std::find(std::begin(kConstants), std::end(kConstants), name) != std::end(kConstants)) {
    return Error(Concat("can't assign to '", name, "'"));
  }
  HEARTH_ASSIGN_OR_RETURN(ExprPtr target, Node(ExprKind::kName, line, std::move(name), {}));
  if (!with_namespace || !SkipOperator(".")) return target;
  HEARTH_ASSIGN_OR_RETURN(std::string attribute, ExpectName());
  std::vector<ExprPtr> children;
  children.push_back(std::move(target));
  return Node(ExprKind::kNamespaceTarget, line, std::move(attribute), std::move(children));
}

// a name, a.b where a is a namespace, or names with commas.
Parser::Expression Parser::AssignTarget(bool with_namespace) {
  const int line = Current().line;
  HEARTH_ASSIGN_OR_RETURN(ExprPtr first, OneTarget(with_namespace));
  if (!AtOperator(",")) return first;
  std::vector<ExprPtr> targets;
  targets.push_back(std::move(first));
  while (SkipOperator(",")) {
    if (Current().type != TokenType::kName && !AtOperator("(")) break;
    if (AtName("in")) break;
    HEARTH_ASSIGN_OR_RETURN(ExprPtr target, OneTarget(false));
    targets.push_back(std::move(target));
  }
  return Node(ExprKind::kTuple, line, "", std::move(targets));
}

Parser::Statement Parser::LoopControl(StmtKind kind) {
  const Token token = Take();
  if (loop_depth_ == 0) return Error(Concat("'", token.text, "' outside of a loop"));
  HEARTH_RETURN_IF_ERROR(BlockEnd());
  return MakeStmt(kind, token.line);
}

}  // namespace hearth::jinja
