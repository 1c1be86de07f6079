// Expressions.
#include "common/text/jinja/builtins.h"
#include "common/text/jinja/interpreter.h"
#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"

namespace hearth::jinja {

Result Interpreter::Evaluate(const Expr& expr) {
  HEARTH_RETURN_IF_ERROR(Spend(1));
  HEARTH_RETURN_IF_ERROR(CheckNesting());
  ++depth_;
  Result result = EvaluateNode(expr);
  --depth_;
  return result;
}

Result Interpreter::EvaluateNode(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kConstant:
      return expr.constant;
    case ExprKind::kName:
      return Name(expr.name);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return Literal(expr);
    case ExprKind::kDict:
      return DictLiteral(expr);
    case ExprKind::kSlice:
      return Sliced(expr);
    case ExprKind::kCall:
      return CallExpression(expr, nullptr);
    case ExprKind::kTest:
      return Tested(expr);
    case ExprKind::kConcat:
      return Joined(expr);
    case ExprKind::kCompare:
      return Comparison(expr);
    case ExprKind::kConditional:
      return Conditional(expr);
    case ExprKind::kNamespaceTarget:
      return Fail("a namespace target is no value");
    default:
      break;
  }
  HEARTH_ASSIGN_OR_RETURN(Value first, Evaluate(*expr.children[0]));
  switch (expr.kind) {
    case ExprKind::kAttribute:
      return GetAttribute(*this, first, expr.name);
    case ExprKind::kUnary:
      return Unary(*this, expr.name, first);
    case ExprKind::kFilter:
      return Filtered(&expr, std::move(first));
    case ExprKind::kAnd:
    case ExprKind::kOr:
      if (IsTrue(first) == (expr.kind == ExprKind::kOr)) return first;
      return Evaluate(*expr.children[1]);
    default:
      break;
  }
  HEARTH_ASSIGN_OR_RETURN(const Value second, Evaluate(*expr.children[1]));
  if (expr.kind == ExprKind::kItem) return GetItem(*this, first, second);
  return Binary(*this, expr.name, first, second);
}

Result Interpreter::Name(const std::string& name) {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    const auto it = scope->variables.find(std::string_view(name));
    if (it != scope->variables.end()) return it->second;
  }
  const Function function = FindGlobal(name);
  if (function == nullptr) return Value::Undefined(Concat("'", name, "' is undefined"));
  auto global = std::make_shared<CallableObject>();
  global->name = name;
  global->function = function;
  return Value(std::shared_ptr<const CallableObject>(std::move(global)));
}

Result Interpreter::Literal(const Expr& expr) {
  Items items;
  items.reserve(expr.children.size());
  for (const ExprPtr& child : expr.children) {
    HEARTH_ASSIGN_OR_RETURN(Value item, Evaluate(*child));
    items.push_back(std::move(item));
  }
  return Checked(expr.kind == ExprKind::kList ? Value::List(std::move(items))
                                              : Value::Tuple(std::move(items)));
}

Result Interpreter::DictLiteral(const Expr& expr) {
  auto dict = std::make_shared<DictObject>();
  for (size_t i = 0; i + 1 < expr.children.size(); i += 2) {
    HEARTH_ASSIGN_OR_RETURN(Value key, Evaluate(*expr.children[i]));
    HEARTH_ASSIGN_OR_RETURN(Value value, Evaluate(*expr.children[i + 1]));
    HEARTH_RETURN_IF_ERROR(Spend(key.weight()));
    if (!IsHashable(key)) return Fail("unhashable type: '", TypeName(key), "'");
    dict->Set(std::move(key), std::move(value));
  }
  return Checked(Value(std::shared_ptr<const DictObject>(std::move(dict))));
}

Result Interpreter::Joined(const Expr& expr) {
  Items parts;  // all are evaluated before any is shown
  for (const ExprPtr& child : expr.children) {
    HEARTH_ASSIGN_OR_RETURN(Value part, Evaluate(*child));
    parts.push_back(std::move(part));
  }
  TextBuilder out(*this);
  for (const Value& part : parts) HEARTH_RETURN_IF_ERROR(AppendStr(out, part));
  return out.Finish();
}

Result Interpreter::Comparison(const Expr& expr) {
  HEARTH_ASSIGN_OR_RETURN(Value left, Evaluate(*expr.children[0]));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(Value right, Evaluate(*expr.children[i + 1]));
    HEARTH_ASSIGN_OR_RETURN(const bool holds, Compare(*this, expr.operators[i], left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Result Interpreter::Conditional(const Expr& expr) {
  HEARTH_ASSIGN_OR_RETURN(const Value condition, Evaluate(*expr.children[0]));
  if (IsTrue(condition)) return Evaluate(*expr.children[1]);
  if (expr.children[2] != nullptr) return Evaluate(*expr.children[2]);
  return Value::Undefined(Concat("the inline if-expression on line ", std::to_string(expr.line),
                                 " evaluated to false and no else section was defined."));
}

Result Interpreter::Sliced(const Expr& expr) {
  Value parts[4];
  for (size_t i = 0; i < 4; ++i) {
    if (expr.children[i] == nullptr) {
      parts[i] = Value(None{});
      continue;
    }
    HEARTH_ASSIGN_OR_RETURN(parts[i], Evaluate(*expr.children[i]));
  }
  return Slice(*this, parts[0], parts[1], parts[2], parts[3]);
}

Result Interpreter::Tested(const Expr& expr) {
  if (expr.function == nullptr) return Fail("No test named '", expr.name, "'.");
  HEARTH_ASSIGN_OR_RETURN(const Value self, Evaluate(*expr.children[0]));
  HEARTH_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expr.arguments));
  return expr.function(*this, self, arguments);
}

// A chain of filters, whose innermost input (null there in a filter block) is `input`.
Result Interpreter::Filtered(const Expr* filter, Value input) {
  if (filter == nullptr) return input;
  std::vector<const Expr*> chain{filter};
  // An input that is written out has been evaluated already: only blocks hang filters on nothing.
  for (const Expr* at = filter;
       at->children[0] != nullptr && at->children[0]->kind == ExprKind::kFilter;) {
    const Expr* root = at->children[0].get();
    const Expr* end = root;
    while (end->children[0] != nullptr && end->children[0]->kind == ExprKind::kFilter)
      end = end->children[0].get();
    if (end->children[0] != nullptr) break;
    chain.push_back(root);
    at = root;
  }
  for (size_t i = chain.size(); i-- > 0;) {
    const Expr& one = *chain[i];
    if (one.function == nullptr) return Fail("No filter named '", one.name, "'.");
    HEARTH_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(one.arguments));
    HEARTH_ASSIGN_OR_RETURN(input, one.function(*this, input, arguments));
  }
  return input;
}

absl::StatusOr<Arguments> Interpreter::EvaluateArguments(const std::vector<Argument>& arguments) {
  Arguments out;
  for (const Argument& argument : arguments) {
    HEARTH_ASSIGN_OR_RETURN(Value value, Evaluate(*argument.value));
    if (argument.kind == ArgumentKind::kPositional) {
      out.positional.push_back(std::move(value));
    } else if (argument.kind == ArgumentKind::kNamed) {
      out.named.emplace_back(argument.name, std::move(value));
    } else if (argument.kind == ArgumentKind::kSpread) {
      HEARTH_ASSIGN_OR_RETURN(const ItemsPtr items, Walk(*this, value));
      HEARTH_RETURN_IF_ERROR(Spend(static_cast<int64_t>(items->size())));
      out.positional.insert(out.positional.end(), items->begin(), items->end());
    } else {
      if (!value.is_dict())
        return Fail("argument after ** must be a mapping, not ", TypeName(value));
      HEARTH_RETURN_IF_ERROR(Spend(value.weight()));
      for (const auto& [key, item] : value.dict().entries) {
        if (!key.is_string()) return Fail("keywords must be strings");
        out.named.emplace_back(key.text(), item);
      }
    }
  }
  return out;
}

Result Interpreter::CallExpression(const Expr& expr, const Value* caller) {
  HEARTH_ASSIGN_OR_RETURN(const Value callee, Evaluate(*expr.children[0]));
  HEARTH_ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expr.arguments));
  if (caller != nullptr) arguments.named.emplace_back("caller", *caller);
  return Call(callee, arguments);
}

Result Interpreter::Call(const Value& callee, const Arguments& arguments) {
  HEARTH_RETURN_IF_ERROR(CheckDefined(callee));
  if (callee.is(Value::Kind::kLoop)) {
    return Fail("The loop must have the 'recursive' marker to be called recursively.");
  }
  if (!callee.is(Value::Kind::kCallable))
    return Fail("'", TypeName(callee), "' object is not callable");
  const CallableObject& callable = callee.callable();
  if (callable.macro != nullptr) return CallMacro(callable, arguments);
  return callable.function(*this, callable.self, arguments);
}

Result Interpreter::CallMacro(const CallableObject& macro, const Arguments& arguments) {
  auto scope = std::make_shared<Scope>();
  scope->parent = macro.closure;
  TextBuilder out(*this);
  {
    const Nested nested(*this, std::move(scope), &out);
    HEARTH_RETURN_IF_ERROR(CheckNesting());
    HEARTH_RETURN_IF_ERROR(BindMacro(*macro.macro, arguments));
    HEARTH_RETURN_IF_ERROR(RunBlock(macro.macro->body).status());
  }
  return out.Finish();
}

absl::Status Interpreter::BindMacro(const MacroNode& node, const Arguments& arguments) {
  const size_t n = node.parameters.size(), first_default = n - node.defaults.size();
  std::vector<bool> used(arguments.named.size());
  HEARTH_RETURN_IF_ERROR(Spend(static_cast<int64_t>(n * arguments.named.size())));
  for (size_t i = 0; i < n; ++i) {
    const std::string& name = node.parameters[i];
    const Value* given = i < arguments.positional.size() ? &arguments.positional[i] : nullptr;
    for (size_t k = 0; k < arguments.named.size(); ++k) {
      if (arguments.named[k].first != name) continue;
      if (given != nullptr)
        return Fail("macro '", node.name, "' got multiple values for argument '", name, "'");
      given = &arguments.named[k].second;
      used[k] = true;
    }
    Value value = Value::Undefined(Concat("parameter '", name, "' was not provided"));
    if (given != nullptr) {
      value = *given;
    } else if (i >= first_default) {
      HEARTH_ASSIGN_OR_RETURN(value, Evaluate(*node.defaults[i - first_default]));
    }
    scope_->variables.insert_or_assign(name, std::move(value));
  }
  return BindRest(node, arguments, std::move(used));
}

// What no parameter took: for varargs, kwargs and caller if the body names them, else an error.
absl::Status Interpreter::BindRest(const MacroNode& node, const Arguments& arguments,
                                   std::vector<bool> used) {
  const size_t n = node.parameters.size();
  Items rest;
  for (size_t i = n; i < arguments.positional.size(); ++i) rest.push_back(arguments.positional[i]);
  if (!rest.empty() && !node.uses_varargs) {
    return Fail("macro '", node.name, "' takes not more than ", std::to_string(n), " argument(s)");
  }
  auto kwargs = std::make_shared<DictObject>();
  Value caller = Value::Undefined("No caller defined");
  for (size_t k = 0; k < arguments.named.size(); ++k) {
    const auto& [name, value] = arguments.named[k];
    if (used[k]) continue;
    if (node.uses_caller && name == "caller") {
      caller = value;
    } else if (node.uses_kwargs) {
      kwargs->Set(name, value);
    } else {
      return Fail("macro '", node.name, "' takes no keyword argument '", name, "'");
    }
  }
  if (node.uses_caller) scope_->variables.insert_or_assign("caller", caller);
  if (node.uses_varargs)
    scope_->variables.insert_or_assign("varargs", Value::Tuple(std::move(rest)));
  if (node.uses_kwargs) {
    scope_->variables.insert_or_assign("kwargs",
                                       Value(std::shared_ptr<const DictObject>(std::move(kwargs))));
  }
  return absl::OkStatus();
}

}  // namespace hearth::jinja
