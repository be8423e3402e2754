import { Budget } from "./budget.ts";
import { filter } from "./filters.ts";
import { fieldName, GLOBALS } from "./globals.ts";
import { method } from "./methods.ts";
import {
  arithmetic,
  callable,
  compare,
  contains,
  equals,
  item,
  mapping,
  refuseUndefined,
  slice,
} from "./operators.ts";
import { str } from "./printing.ts";
import { type Call, type For, type Name, type Node, type Slice, walk } from "./syntax.ts";
import { test } from "./tests.ts";
import {
  type Arguments,
  Callable,
  Dict,
  fromOutside,
  InputSize,
  integer,
  isNumeric,
  isTrue,
  iterate,
  Loop,
  Namespace,
  orUndefined,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** Variables of a block, over those of the blocks around it. */
class Scope {
  readonly variables = new Map<string, Value>();

  constructor(readonly outer?: Scope) {}

  get(name: string): Value | undefined {
    for (let scope: Scope | undefined = this; scope !== undefined; scope = scope.outer) {
      const value = scope.variables.get(name);
      if (value !== undefined) return value;
    }
    return undefined;
  }
}

type Signal = "break" | "continue" | undefined;

const LITERALS: ReadonlyMap<string, Value> = new Map<string, Value>([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
  ["none", null],
  ["None", null],
]);
/**
 * Renders a template as Jinja does in the sandbox that transformers gives it. Templates come from untrusted folders:
 * they see the values below and nothing of JavaScript, change nothing but their own variables, and run within a
 * `Budget`.
 * @param inputs the template's variables @param functions what it may call, beside `range`, `dict` and `namespace`
 * @throws Error when the template fails or exceeds its budget
 */
export function render(
  program: Node,
  inputs: Readonly<Record<string, unknown>>,
  functions: Readonly<Record<string, (args: readonly Value[]) => Value>>,
): string {
  const scope = new Scope();
  const size = new InputSize();
  for (const [name, body] of Object.entries(functions)) {
    scope.variables.set(name, new Callable(name, ({ positional }) => body(positional)));
  }
  const inner = new Scope(scope);
  for (const [name, value] of Object.entries(inputs)) inner.variables.set(name, fromOutside(value, size));
  const budget = new Budget(size.elements, size.characters);
  for (const [name, body] of Object.entries(GLOBALS)) {
    scope.variables.set(name, new Callable(name, (args) => body(args, budget)));
  }
  return new Interpreter(budget).text([program], inner);
}

class Interpreter {
  readonly #budget: Budget;

  constructor(budget: Budget) {
    this.#budget = budget;
  }

  /** The text that `nodes` write. A loop's signal ends at the block that it is in. */
  text(nodes: readonly Node[], scope: Scope): string {
    const output: string[] = [];
    this.#run(nodes, scope, output);
    const text = output.join("");
    this.#budget.text(text.length);
    return text;
  }

  #run(nodes: readonly Node[], scope: Scope, output: string[]): Signal {
    for (const node of nodes) {
      this.#budget.enter();
      const signal = this.#statement(node, scope, output);
      this.#budget.leave();
      if (signal !== undefined) return signal;
    }
    return undefined;
  }

  #statement(node: Node, scope: Scope, output: string[]): Signal {
    switch (node.type) {
      case "Program":
        return this.#run(node.body, scope, output);
      case "If":
        return this.#run(
          isTrue(this.#evaluate(node.test, scope)) ? node.body : node.alternate,
          scope,
          output,
        );
      case "For":
        return this.#for(node, scope, output);
      case "Break":
        return "break";
      case "Continue":
        return "continue";
      case "Comment":
        return undefined;
      case "Set": {
        const value =
          node.value === null ? this.text(node.body, new Scope(scope)) : this.#evaluate(node.value, scope);
        this.#assign(node.assignee, value, scope);
        return undefined;
      }
      case "Macro":
        scope.variables.set(node.name.value, this.#macro(node.name.value, node.args, node, scope));
        return undefined;
      case "CallStatement": {
        const { positional, keywords } = this.#arguments(node.call.args, scope);
        const caller = this.#macro("caller", node.callerArgs ?? [], node, scope);
        const macro = callable(this.#evaluate(node.call.callee, scope));
        this.#write(macro.call({ positional, keywords: new Map([...keywords, ["caller", caller]]) }), output);
        return undefined;
      }
      case "FilterStatement":
        this.#write(this.#filter(this.text(node.body, new Scope(scope)), node.filter, scope), output);
        return undefined;
      default:
        this.#write(this.#evaluate(node, scope), output);
        return undefined;
    }
  }

  #write(value: Value, output: string[]): void {
    const text = str(value, this.#budget);
    this.#budget.text(text.length);
    output.push(text);
  }

  #for({ loopvar, iterable, body, defaultBlock }: For, scope: Scope, output: string[]): Signal {
    const filtered = iterable.type === "SelectExpression";
    let items = iterate(this.#evaluate(filtered ? iterable.lhs : iterable, scope), this.#budget);
    if (filtered) {
      items = items.filter((element) => {
        const inner = new Scope(scope);
        this.#assign(loopvar, element, inner);
        return isTrue(this.#evaluate(iterable.test, inner));
      });
    }
    if (items.length === 0) return this.#run(defaultBlock, new Scope(scope), output);
    const state = { last: undefined };
    for (const [i, element] of items.entries()) {
      this.#budget.step();
      const inner = new Scope(scope);
      inner.variables.set("loop", new Loop(items, i, state));
      this.#assign(loopvar, element, inner);
      if (this.#run(body, inner, output) === "break") break;
    }
    return undefined;
  }

  #assign(target: Node, value: Value, scope: Scope): void {
    if (target.type === "Identifier") scope.variables.set(target.value, value);
    else if (target.type === "TupleLiteral") {
      const items = iterate(value, this.#budget);
      const { length } = target.value;
      if (items.length !== length) {
        throw new Error(
          items.length < length
            ? `not enough values to unpack (expected ${length}, got ${items.length})`
            : `too many values to unpack (expected ${length})`,
        );
      }
      for (const [i, each] of target.value.entries()) this.#assign(each, items[i]!, scope);
    } else if (
      target.type === "MemberExpression" &&
      target.property.type === "Identifier" &&
      !target.computed
    ) {
      const object = this.#evaluate(target.object, scope);
      if (!(object instanceof Namespace)) throw new Error("cannot assign attribute on non-namespace object");
      object.fields.set(fieldName(target.property.value), value);
    } else throw new Error(`cannot assign to ${target.type}`);
  }

  /** Parameters that are not given take their defaults, which may name the parameters before them. */
  #macro(
    name: string,
    parameters: readonly Node[],
    { body }: { readonly body: readonly Node[] },
    scope: Scope,
  ): Callable {
    const uses = specialNames(body, this.#budget);
    return new Callable(name, ({ positional, keywords }) => {
      const inner = new Scope(scope);
      const rest = new Map(keywords);
      for (const [i, parameter] of parameters.entries()) {
        const named = parameter.type === "KeywordArgumentExpression";
        const key = (named ? parameter.key : (parameter as Name)).value;
        const given = i < positional.length ? positional[i] : rest.get(key);
        rest.delete(key);
        if (given !== undefined) inner.variables.set(key, given);
        else if (named) inner.variables.set(key, this.#evaluate(parameter.value, inner));
        else inner.variables.set(key, new Undefined(`parameter '${key}' was not provided`));
      }
      const caller = rest.get("caller");
      rest.delete("caller");
      if (caller !== undefined) inner.variables.set("caller", caller);
      if (uses.has("kwargs")) inner.variables.set("kwargs", new Dict(rest));
      else if (rest.size > 0)
        throw new Error(`macro '${name}' takes no keyword argument '${[...rest.keys()][0]}'`);
      if (uses.has("varargs")) inner.variables.set("varargs", new Tuple(positional.slice(parameters.length)));
      else if (positional.length > parameters.length) {
        throw new Error(`macro '${name}' takes not more than ${parameters.length} argument(s)`);
      }
      this.#budget.enter();
      const text = this.text(body, inner);
      this.#budget.leave();
      return text;
    });
  }

  #evaluate(node: Node, scope: Scope): Value {
    this.#budget.enter();
    const value = this.#expression(node, scope);
    this.#budget.leave();
    return value;
  }

  #expression(node: Node, scope: Scope): Value {
    switch (node.type) {
      case "IntegerLiteral":
        return BigInt(node.value);
      case "FloatLiteral":
      case "StringLiteral":
        return node.value;
      case "ArrayLiteral":
        return node.value.map((each) => this.#evaluate(each, scope));
      case "TupleLiteral":
        return new Tuple(node.value.map((each) => this.#evaluate(each, scope)));
      case "ObjectLiteral":
        return new Dict(
          [...node.value].map(([key, value]) => [this.#evaluate(key, scope), this.#evaluate(value, scope)]),
        );
      case "Identifier":
        return this.#variable(node.value, scope);
      case "MemberExpression":
        return this.#member(this.#evaluate(node.object, scope), node.property, node.computed, scope);
      case "CallExpression":
        return callable(this.#evaluate(node.callee, scope)).call(this.#arguments(node.args, scope));
      case "FilterExpression":
        return this.#filter(this.#evaluate(node.operand, scope), node.filter, scope);
      case "TestExpression":
        return test(node.test.value, this.#evaluate(node.operand, scope), [], this.#budget) !== node.negate;
      case "UnaryExpression":
        return this.#unary(node.operator.value, this.#evaluate(node.argument, scope));
      case "BinaryExpression":
        return this.#binary(node.operator.value, node.left, node.right, scope);
      case "Ternary":
        return this.#evaluate(
          isTrue(this.#evaluate(node.condition, scope)) ? node.trueExpr : node.falseExpr,
          scope,
        );
      case "SelectExpression": {
        if (isTrue(this.#evaluate(node.test, scope))) return this.#evaluate(node.lhs, scope);
        return new Undefined("the inline if-expression evaluated to false and no else section was defined");
      }
      default:
        throw new Error(`${node.type} is not an expression`);
    }
  }

  #variable(name: string, scope: Scope): Value {
    const value = LITERALS.has(name) ? LITERALS.get(name) : scope.get(name);
    return value === undefined ? new Undefined(`'${name}' is undefined`, true) : value;
  }

  #unary(operator: string, operand: Value): Value {
    if (operator === "not") return !isTrue(operand);
    refuseUndefined(operand);
    if (!isNumeric(operand))
      throw new Error(`bad operand type for unary ${operator}: '${typeName(operand)}'`);
    const number = typeof operand === "boolean" ? BigInt(operand) : operand;
    return operator === "-" ? -number : number;
  }

  #binary(operator: string, left: Node, right: Node, scope: Scope): Value {
    const a = this.#evaluate(left, scope);
    if (operator === "and") return isTrue(a) ? this.#evaluate(right, scope) : a;
    if (operator === "or") return isTrue(a) ? a : this.#evaluate(right, scope);
    const b = this.#evaluate(right, scope);
    switch (operator) {
      case "==":
        return equals(a, b, this.#budget);
      case "!=":
        return !equals(a, b, this.#budget);
      case "in":
        return contains(b, a, this.#budget);
      case "not in":
        return !contains(b, a, this.#budget);
      case "<":
        return compare(a, b, this.#budget) < 0;
      case "<=":
        return compare(a, b, this.#budget) <= 0;
      case ">":
        return compare(a, b, this.#budget) > 0;
      case ">=":
        return compare(a, b, this.#budget) >= 0;
    }
    return arithmetic(operator, a, b, this.#budget);
  }

  /** `a.b` looks for an attribute first, `a["b"]` for an element; each takes the other when there is none. */
  #member(object: Value, property: Node, computed: boolean, scope: Scope): Value {
    refuseUndefined(object);
    if (property.type === "SliceExpression") return this.#slice(object, property, scope);
    const literal = !computed && property.type === "Identifier";
    const key = literal ? property.value : this.#evaluate(property, scope);
    const attribute = () => (typeof key === "string" ? this.#attribute(object, key) : undefined);
    const element = () => item(object, key, this.#budget);
    const first = literal ? attribute() : element();
    const found = first === undefined ? (literal ? element() : attribute()) : first;
    return orUndefined(found, `'${typeName(object)}' object has no attribute '${str(key, this.#budget)}'`);
  }

  #attribute(object: Value, name: string): Value | undefined {
    if (object instanceof Namespace) return object.fields.get(name);
    if (!(object instanceof Loop)) return method(object, name, this.#budget);
    if (name === "cycle") {
      return new Callable(name, ({ positional }) => positional[object.index % positional.length] ?? null);
    }
    if (name === "changed") return new Callable(name, ({ positional }) => this.#changed(object, positional));
    return object.get(name);
  }

  #changed({ state }: Loop, values: readonly Value[]): boolean {
    const now = new Tuple(values);
    const same = state.last !== undefined && equals(state.last, now, this.#budget);
    state.last = now;
    return !same;
  }

  #slice(object: Value, { start, stop, step }: Slice, scope: Scope): Value {
    const bounds = [start, stop, step].map((node) => {
      const bound = node === undefined ? null : this.#evaluate(node, scope);
      return bound === null ? undefined : integer(bound, "a slice's bound");
    });
    return slice(object, bounds, this.#budget);
  }

  #filter(operand: Value, node: Name | Call, scope: Scope): Value {
    if (node.type === "Identifier") return filter(node.value, operand, NO_ARGUMENTS, this.#budget);
    const args = this.#arguments(node.args, scope);
    return filter((node.callee as Name).value, operand, args, this.#budget);
  }

  #arguments(nodes: readonly Node[], scope: Scope): Arguments {
    const positional: Value[] = [];
    const keywords = new Map<string, Value>();
    for (const node of nodes) {
      if (node.type === "KeywordArgumentExpression")
        keywords.set(node.key.value, this.#evaluate(node.value, scope));
      else if (node.type === "SpreadExpression") {
        positional.push(...iterate(this.#evaluate(node.argument, scope), this.#budget));
      } else if (node.type === "KeywordSpreadExpression") {
        const spread = mapping(this.#evaluate(node.argument, scope));
        if (spread === undefined) throw new Error("the argument after ** must be a mapping");
        for (const [key, value] of spread.entries()) keywords.set(str(key, this.#budget), value);
      } else positional.push(this.#evaluate(node, scope));
    }
    return { positional, keywords };
  }
}

const NO_ARGUMENTS: Arguments = { positional: [], keywords: new Map() };

/** The ones of `varargs` and `kwargs` that a macro's body names. */
function specialNames(body: readonly Node[], budget: Budget): ReadonlySet<string> {
  const names = new Set<string>();
  walk(body, (node) => {
    budget.step();
    if (node.type === "Identifier" && (node.value === "varargs" || node.value === "kwargs"))
      names.add(node.value);
  });
  return names;
}
