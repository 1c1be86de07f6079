// Runs a parsed template once. One object a rendering, on one thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/text/jinja/ast.h"
#include "common/text/jinja/runtime.h"

namespace hearth::jinja {

// Variables of a loop pass, a macro call, a block; names point into the template or the caller's
// variables.
struct Scope {
  absl::flat_hash_map<std::string_view, Value> variables;
  std::shared_ptr<Scope> parent;
};
using ScopePtr = std::shared_ptr<Scope>;

class Interpreter final : public Runtime {
 public:
  explicit Interpreter(const TemplateLimits& limits) : Runtime(limits) {}
  ~Interpreter() override;

  // `variables` outlive the interpreter, as does the template.
  absl::StatusOr<std::string> Render(const Block& block, ScopePtr variables);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using Outcome = absl::StatusOr<Flow>;

  // interpreter.cc: statements. They write to out_ and read and change scope_.
  Outcome RunBlock(const Block& block);
  Outcome Run(const Stmt& stmt);
  Outcome If(const Stmt& stmt);
  Outcome For(const Stmt& stmt);
  Outcome Pass(const Stmt& stmt, const Value& item, const Value& loop);
  absl::StatusOr<ItemsPtr> LoopItems(const Stmt& stmt);
  absl::Status Print(const Value& value);
  absl::Status SetBlock(const Stmt& stmt);
  absl::Status CallBlock(const Stmt& stmt);
  absl::Status With(const Stmt& stmt);
  Outcome Scoped(const Block& block);
  Result Captured(const Block& block);  // what the block prints, in a scope of its own
  absl::Status Assign(const Expr& target, const Value& value);
  Value MakeMacro(const MacroNode& node, bool is_caller);

  // evaluate.cc: expressions.
  Result Evaluate(const Expr& expr);
  Result EvaluateNode(const Expr& expr);
  Result Name(const std::string& name);
  Result Literal(const Expr& expr);
  Result DictLiteral(const Expr& expr);
  Result Joined(const Expr& expr);
  Result Comparison(const Expr& expr);
  Result Conditional(const Expr& expr);
  Result Sliced(const Expr& expr);
  Result CallExpression(const Expr& expr, const Value* caller);
  Result Filtered(const Expr* filter, Value input);
  Result Tested(const Expr& expr);
  absl::StatusOr<Arguments> EvaluateArguments(const std::vector<Argument>& arguments);
  Result Call(const Value& callee, const Arguments& arguments);
  Result CallMacro(const CallableObject& macro, const Arguments& arguments);
  absl::Status BindMacro(const MacroNode& node, const Arguments& arguments);
  absl::Status BindRest(const MacroNode& node, const Arguments& arguments, std::vector<bool> used);
  Value NewNamespace(std::shared_ptr<DictObject> attributes) override;

  // Sets a member for as long as it lives.
  class Nested;
  absl::Status CheckNesting() const;

  ScopePtr scope_;
  TextBuilder* out_ = nullptr;
  int depth_ = 0;
  // What may be part of a cycle of references; emptied at the end.
  std::vector<std::shared_ptr<NamespaceObject>> namespaces_;
  std::vector<std::shared_ptr<CallableObject>> macros_;
  std::vector<std::shared_ptr<LoopObject>> loops_;
};

// Opens a level of nesting and, if given, a scope and an output; the destructor restores what was.
class Interpreter::Nested {
 public:
  Nested(Interpreter& interpreter, ScopePtr scope, TextBuilder* out)
      : interpreter_(interpreter), scope_(std::move(interpreter.scope_)), out_(interpreter.out_) {
    interpreter.scope_ = std::move(scope);
    if (out != nullptr) interpreter.out_ = out;
    ++interpreter.depth_;
  }
  ~Nested() {
    interpreter_.scope_ = std::move(scope_);
    interpreter_.out_ = out_;
    --interpreter_.depth_;
  }
  Nested(const Nested&) = delete;
  Nested& operator=(const Nested&) = delete;

 private:
  Interpreter& interpreter_;
  ScopePtr scope_;
  TextBuilder* out_;
};

}  // namespace hearth::jinja
