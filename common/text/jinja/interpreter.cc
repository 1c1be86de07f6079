#include "common/text/jinja/interpreter.h"

#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"

namespace hearth::jinja {
namespace {

// Frames of evaluation inside each other, for each level of TemplateLimits::max_depth: what
// recursion costs of the stack.
constexpr int kFramesPerLevel = 8;

ScopePtr ChildOf(const ScopePtr& parent) {
  auto scope = std::make_shared<Scope>();
  scope->parent = parent;
  return scope;
}

}  // namespace

Interpreter::~Interpreter() {
  for (const auto& object : namespaces_) object->attributes = nullptr;
  for (const auto& macro : macros_) macro->closure = nullptr;
  for (const auto& loop : loops_) loop->last_changed.reset();
}

absl::Status Interpreter::CheckNesting() const {
  if (depth_ <= kFramesPerLevel * limits().max_depth) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      "the chat template's macros call each other too deeply; simplify the template or what it is "
      "given");
}

absl::StatusOr<std::string> Interpreter::Render(const Block& block, ScopePtr variables) {
  TextBuilder out(*this);
  const ScopePtr globals = std::move(variables);
  const Nested nested(*this, ChildOf(globals), &out);
  HEARTH_RETURN_IF_ERROR(RunBlock(block).status());
  return out.Take();
}

Interpreter::Outcome Interpreter::RunBlock(const Block& block) {
  for (const auto& stmt : block) {
    HEARTH_RETURN_IF_ERROR(Spend(1));
    HEARTH_ASSIGN_OR_RETURN(const Flow flow, Run(*stmt));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Outcome Interpreter::Run(const Stmt& stmt) {
  switch (stmt.kind) {
    case StmtKind::kData:
      out_->Append(stmt.text);
      if (out_->is_full()) return TooLong();
      return Flow::kNext;
    case StmtKind::kPrint: {
      HEARTH_ASSIGN_OR_RETURN(const Value value, Evaluate(*stmt.expr));
      HEARTH_RETURN_IF_ERROR(Print(value));
      return Flow::kNext;
    }
    case StmtKind::kIf:
      return If(stmt);
    case StmtKind::kFor:
      return For(stmt);
    case StmtKind::kSet: {
      HEARTH_ASSIGN_OR_RETURN(const Value value, Evaluate(*stmt.expr));
      HEARTH_RETURN_IF_ERROR(Assign(*stmt.target, value));
      return Flow::kNext;
    }
    case StmtKind::kSetBlock:
      HEARTH_RETURN_IF_ERROR(SetBlock(stmt));
      return Flow::kNext;
    case StmtKind::kMacro:
      scope_->variables.insert_or_assign(stmt.macro->name, MakeMacro(*stmt.macro, false));
      return Flow::kNext;
    case StmtKind::kCall:
      HEARTH_RETURN_IF_ERROR(CallBlock(stmt));
      return Flow::kNext;
    case StmtKind::kFilter: {
      HEARTH_ASSIGN_OR_RETURN(Value text, Captured(stmt.body));
      HEARTH_ASSIGN_OR_RETURN(text, Filtered(stmt.expr.get(), std::move(text)));
      HEARTH_RETURN_IF_ERROR(Print(text));
      return Flow::kNext;
    }
    case StmtKind::kWith:
      HEARTH_RETURN_IF_ERROR(With(stmt));
      return Flow::kNext;
    case StmtKind::kScope:
      return Scoped(stmt.body);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

absl::Status Interpreter::Print(const Value& value) {
  HEARTH_RETURN_IF_ERROR(AppendStr(*out_, value));
  return out_->is_full() ? TooLong() : absl::OkStatus();
}

Interpreter::Outcome Interpreter::If(const Stmt& stmt) {
  HEARTH_RETURN_IF_ERROR(CheckNesting());
  for (const Branch& branch : stmt.branches) {
    if (branch.condition != nullptr) {
      HEARTH_ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition));
      if (!IsTrue(condition)) continue;
    }
    const Nested nested(*this, ScopePtr(scope_), nullptr);
    return RunBlock(branch.body);
  }
  return Flow::kNext;
}

Interpreter::Outcome Interpreter::Scoped(const Block& block) {
  HEARTH_RETURN_IF_ERROR(CheckNesting());
  const Nested nested(*this, ChildOf(scope_), nullptr);
  return RunBlock(block);
}

Result Interpreter::Captured(const Block& block) {
  TextBuilder out(*this);
  {
    const Nested nested(*this, ChildOf(scope_), &out);
    HEARTH_RETURN_IF_ERROR(CheckNesting());
    HEARTH_RETURN_IF_ERROR(RunBlock(block).status());
  }
  return out.Finish();
}

// The items of a loop, after its inline `if`.
absl::StatusOr<ItemsPtr> Interpreter::LoopItems(const Stmt& stmt) {
  HEARTH_ASSIGN_OR_RETURN(const Value iterable, Evaluate(*stmt.expr));
  HEARTH_ASSIGN_OR_RETURN(ItemsPtr items, Walk(*this, iterable));
  if (stmt.filter == nullptr) return items;
  auto kept = std::make_shared<Items>();
  for (const Value& item : *items) {
    const Nested nested(*this, ChildOf(scope_), nullptr);
    HEARTH_RETURN_IF_ERROR(Assign(*stmt.target, item));
    HEARTH_ASSIGN_OR_RETURN(const Value condition, Evaluate(*stmt.filter));
    if (IsTrue(condition)) kept->push_back(item);
  }
  return kept;
}

Interpreter::Outcome Interpreter::For(const Stmt& stmt) {
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, LoopItems(stmt));
  auto loop = std::make_shared<LoopObject>();
  loop->items = items;
  loop->extent = ExtentOf(*items);
  HEARTH_RETURN_IF_ERROR(Spend(1 + static_cast<int64_t>(items->size()) / 8));
  HEARTH_ASSIGN_OR_RETURN(const Value loop_value, Checked(Value(loop)));
  loops_.push_back(loop);
  for (size_t i = 0; i < items->size(); ++i) {
    loop->index0 = static_cast<int64_t>(i);
    HEARTH_RETURN_IF_ERROR(Spend(1));
    HEARTH_ASSIGN_OR_RETURN(const Flow flow, Pass(stmt, (*items)[i], loop_value));
    if (flow == Flow::kBreak) break;
  }
  if (!items->empty()) return Flow::kNext;
  return Scoped(stmt.orelse);
}

Interpreter::Outcome Interpreter::Pass(const Stmt& stmt, const Value& item, const Value& loop) {
  HEARTH_RETURN_IF_ERROR(CheckNesting());
  const Nested nested(*this, ChildOf(scope_), nullptr);
  scope_->variables.emplace("loop", loop);
  HEARTH_RETURN_IF_ERROR(Assign(*stmt.target, item));
  return RunBlock(stmt.body);
}

absl::Status Interpreter::SetBlock(const Stmt& stmt) {
  HEARTH_ASSIGN_OR_RETURN(Value text, Captured(stmt.body));
  HEARTH_ASSIGN_OR_RETURN(text, Filtered(stmt.expr.get(), std::move(text)));
  return Assign(*stmt.target, text);
}

absl::Status Interpreter::CallBlock(const Stmt& stmt) {
  const Value caller = MakeMacro(*stmt.macro, true);
  HEARTH_ASSIGN_OR_RETURN(const Value text, CallExpression(*stmt.expr, &caller));
  return Print(text);
}

absl::Status Interpreter::With(const Stmt& stmt) {
  HEARTH_RETURN_IF_ERROR(CheckNesting());
  Items values;  // all are evaluated outside
  for (const auto& assignment : stmt.assignments) {
    HEARTH_ASSIGN_OR_RETURN(Value value, Evaluate(*assignment.second));
    values.push_back(std::move(value));
  }
  const Nested nested(*this, ChildOf(scope_), nullptr);
  for (size_t i = 0; i < values.size(); ++i) {
    HEARTH_RETURN_IF_ERROR(Assign(*stmt.assignments[i].first, values[i]));
  }
  return RunBlock(stmt.body).status();
}

absl::Status Interpreter::Assign(const Expr& target, const Value& value) {
  HEARTH_RETURN_IF_ERROR(Spend(1));
  if (target.kind == ExprKind::kName) {
    scope_->variables.insert_or_assign(target.name, value);
    return absl::OkStatus();
  }
  if (target.kind == ExprKind::kNamespaceTarget) {
    HEARTH_ASSIGN_OR_RETURN(const Value object, Name(target.children[0]->name));
    if (!object.is(Value::Kind::kNamespace))
      return Fail("cannot assign attribute on non-namespace object");
    object.ns().attributes->Set(target.name, value);
    return absl::OkStatus();
  }
  HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(*this, value));
  const size_t wanted = target.children.size();
  if (items->size() > wanted)
    return Fail("too many values to unpack (expected ", std::to_string(wanted), ")");
  if (items->size() < wanted) {
    return Fail("not enough values to unpack (expected ", std::to_string(wanted), ", got ",
                std::to_string(items->size()), ")");
  }
  for (size_t i = 0; i < wanted; ++i)
    HEARTH_RETURN_IF_ERROR(Assign(*target.children[i], (*items)[i]));
  return absl::OkStatus();
}

Value Interpreter::MakeMacro(const MacroNode& node, bool is_caller) {
  auto macro = std::make_shared<CallableObject>();
  macro->name = node.name;
  macro->macro = &node;
  macro->closure = scope_;
  macro->is_caller = is_caller;
  macros_.push_back(macro);
  return Value(std::shared_ptr<const CallableObject>(std::move(macro)));
}

Value Interpreter::NewNamespace(std::shared_ptr<DictObject> attributes) {
  namespaces_.push_back(std::make_shared<NamespaceObject>(NamespaceObject{std::move(attributes)}));
  return Value(namespaces_.back());
}

}  // namespace hearth::jinja
