// The parsed template: made once by the parser, only read afterwards (by many renderings at a
// time).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/text/jinja/value.h"

namespace hearth::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kConstant,   // constant
  kName,       // name
  kList,       // children
  kTuple,      // children
  kDict,       // children: key, value, key, value ...
  kAttribute,  // children[0] . name
  kItem,       // children[0] [ children[1] ]
  kSlice,      // children[0] [ children[1] : children[2] : children[3] ], absent ones null
  kCall,       // children[0] ( arguments )
  kFilter,     // children[0] | name ( arguments ); children[0] is null in a filter block
  kTest,       // children[0] is name ( arguments )
  kUnary,      // name: "-", "+", "not"
  kBinary,     // name: "+", "-", "*", "/", "//", "%", "**"
  kConcat,     // children joined by ~
  kCompare,    // children[0] operators[0] children[1] operators[1] ...
  kAnd,        // children[0] and children[1]
  kOr,
  kConditional,      // children[1] if children[0] else children[2] (may be null)
  kNamespaceTarget,  // children[0] (a name) . name; only as target of set
};

enum class ArgumentKind { kPositional, kNamed, kSpread, kSpreadNamed };  // x, name=x, *x, **x

struct Argument {
  ArgumentKind kind = ArgumentKind::kPositional;
  std::string name;
  ExprPtr value;
};

struct Expr {
  ExprKind kind;
  int line = 0;
  int height = 1;  // of this tree: bounds the recursion of its evaluation
  std::string name;
  Value constant;
  Function function = nullptr;  // of a filter or test, looked up by the parser
  std::vector<ExprPtr> children;
  std::vector<std::string> operators;
  std::vector<Argument> arguments;
};

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

struct MacroNode {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  Block body;
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

enum class StmtKind {
  kData,      // text
  kPrint,     // expr
  kIf,        // branches: condition and body; no condition is else
  kFor,       // target in expr, filter may be null; body, orelse
  kSet,       // target = expr
  kSetBlock,  // target = body, filtered by expr (may be null)
  kMacro,     // macro
  kCall,      // macro is the caller, expr the call
  kFilter,    // body, filtered by expr
  kWith,      // assignments, body
  kScope,     // body in a scope of its own (generation)
  kBreak,
  kContinue,
};

struct Branch {
  ExprPtr condition;
  Block body;
};

struct Stmt {
  StmtKind kind;
  int line = 0;
  std::string text;
  ExprPtr target, expr, filter;
  std::vector<Branch> branches;
  std::vector<std::pair<ExprPtr, ExprPtr>> assignments;
  Block body, orelse;
  std::unique_ptr<MacroNode> macro;
};

}  // namespace hearth::jinja
