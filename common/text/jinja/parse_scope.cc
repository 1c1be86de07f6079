// The statements that open a scope: macros, call and filter blocks, with, generation. And the entry
// of the parser.
#include <utility>

#include "common/text/jinja/parser.h"
#include "common/text/jinja/runtime.h"

namespace hearth::jinja {
namespace {

std::unique_ptr<Stmt> MakeStmt(StmtKind kind, int line) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = kind;
  stmt->line = line;
  return stmt;
}

}  // namespace

// (a, b=1)
absl::Status Parser::Signature(MacroNode& macro) {
  HEARTH_RETURN_IF_ERROR(ExpectOperator("("));
  while (!AtOperator(")")) {
    if (!macro.parameters.empty()) HEARTH_RETURN_IF_ERROR(ExpectOperator(","));
    HEARTH_ASSIGN_OR_RETURN(std::string name, ExpectName());
    macro.parameters.push_back(std::move(name));
    if (SkipOperator("=")) {
      HEARTH_ASSIGN_OR_RETURN(ExprPtr value, Conditional());
      macro.defaults.push_back(std::move(value));
    } else if (!macro.defaults.empty()) {
      return Error("non-default argument follows default argument");
    }
  }
  return ExpectOperator(")");
}

absl::Status Parser::MacroBody(MacroNode& macro, std::string_view end_tag) {
  HEARTH_RETURN_IF_ERROR(BlockEnd());
  macros_.push_back(&macro);
  const int loops = std::exchange(loop_depth_, 0);
  HEARTH_ASSIGN_OR_RETURN(macro.body, Body({end_tag}));
  loop_depth_ = loops;
  macros_.pop_back();
  return EndTag(end_tag);
}

Parser::Statement Parser::Macro() {
  auto stmt = MakeStmt(StmtKind::kMacro, Take().line);
  stmt->macro = std::make_unique<MacroNode>();
  HEARTH_ASSIGN_OR_RETURN(stmt->macro->name, ExpectName());
  HEARTH_RETURN_IF_ERROR(Signature(*stmt->macro));
  HEARTH_RETURN_IF_ERROR(MacroBody(*stmt->macro, "endmacro"));
  return stmt;
}

// {% call(x) f(...) %}body{% endcall %}: f may print caller(...), which is the body.
Parser::Statement Parser::CallBlock() {
  auto stmt = MakeStmt(StmtKind::kCall, Take().line);
  stmt->macro = std::make_unique<MacroNode>();
  stmt->macro->name = "caller";
  if (AtOperator("(")) HEARTH_RETURN_IF_ERROR(Signature(*stmt->macro));
  HEARTH_ASSIGN_OR_RETURN(stmt->expr, Conditional());
  if (stmt->expr->kind != ExprKind::kCall) return Error("expected call");
  HEARTH_RETURN_IF_ERROR(MacroBody(*stmt->macro, "endcall"));
  return stmt;
}

Parser::Statement Parser::FilterBlock() {
  auto stmt = MakeStmt(StmtKind::kFilter, Take().line);
  --at_;  // Filter() begins with the |, for which the tag's name stands here
  HEARTH_ASSIGN_OR_RETURN(stmt->expr, Filter(nullptr));
  while (AtOperator("|")) {
    HEARTH_ASSIGN_OR_RETURN(stmt->expr, Filter(std::move(stmt->expr)));
  }
  HEARTH_RETURN_IF_ERROR(BlockEnd());
  HEARTH_ASSIGN_OR_RETURN(stmt->body, Body({"endfilter"}));
  HEARTH_RETURN_IF_ERROR(EndTag("endfilter"));
  return stmt;
}

Parser::Statement Parser::With() {
  auto stmt = MakeStmt(StmtKind::kWith, Take().line);
  while (Current().type != TokenType::kBlockEnd) {
    if (!stmt->assignments.empty()) HEARTH_RETURN_IF_ERROR(ExpectOperator(","));
    HEARTH_ASSIGN_OR_RETURN(ExprPtr target, OneTarget(false));
    HEARTH_RETURN_IF_ERROR(ExpectOperator("="));
    HEARTH_ASSIGN_OR_RETURN(ExprPtr value, Conditional());
    stmt->assignments.emplace_back(std::move(target), std::move(value));
  }
  HEARTH_RETURN_IF_ERROR(BlockEnd());
  HEARTH_ASSIGN_OR_RETURN(stmt->body, Body({"endwith"}));
  HEARTH_RETURN_IF_ERROR(EndTag("endwith"));
  return stmt;
}

// Marks what the model wrote, for training; here it only is a scope.
Parser::Statement Parser::Generation() {
  auto stmt = MakeStmt(StmtKind::kScope, Take().line);
  HEARTH_RETURN_IF_ERROR(BlockEnd());
  const int loops = std::exchange(loop_depth_, 0);
  HEARTH_ASSIGN_OR_RETURN(stmt->body, Body({"endgeneration"}));
  loop_depth_ = loops;
  HEARTH_RETURN_IF_ERROR(EndTag("endgeneration"));
  return stmt;
}

absl::StatusOr<Block> ParseTemplate(std::string_view source, const TemplateLimits& limits) {
  // A token takes a hundred times the memory of its character.
  constexpr size_t kMaxSourceBytes = 1 << 20;
  if (source.size() > kMaxSourceBytes) {
    return Fail("the chat template has ", std::to_string(source.size()), " bytes, more than ",
                std::to_string(kMaxSourceBytes), "; published ones have some thousand");
  }
  HEARTH_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens), limits.max_depth).Template();
}

}  // namespace hearth::jinja
