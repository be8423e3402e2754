import { Environment, Interpreter } from "@huggingface/jinja";

type Node = NonNullable<Parameters<Interpreter["evaluate"]>[0]>;
type Value = ReturnType<Interpreter["evaluate"]>;
type FunctionBody = (args: Value[], scope: Environment) => Value;

/** The fields of syntax nodes that the interpreter below reads; which of them exist depends on `type`. */
interface Fields {
  readonly type: string;
  readonly object: Node;
  readonly property: Node;
  readonly operand: Node;
  readonly assignee: Node & Fields;
  readonly argument: Node;
  readonly value: Node;
  readonly body: Node[];
  readonly filter: Node & Fields;
  readonly callee: { readonly value: unknown };
  readonly args: (Node & Fields)[];
}

/** A value already computed, standing where the interpreter expects an expression. */
interface Constant {
  readonly type: "Constant";
  readonly constant: Value;
}

/** What a list element, a dictionary entry or a loop iteration weighs, in characters. */
const ELEMENT_WEIGHT = 32;
const BASE_WEIGHT = 2 ** 20;
const WEIGHT_PER_INPUT = 4;
const MAX_NESTING = 128;
const MAX_DEPTH = 512;
const MAX_STEPS = 2 ** 20;
const WEIGHT_PER_STEP = 128;
/** Slicing takes a text apart into its characters. */
const STEPS_PER_SLICED_CHARACTER = 1 / 16;
const TIME_LIMIT_MS = 10_000;

/** A statement without effect: even an empty loop then takes a step every time round. */
const TICK = { type: "Comment" } as Node;

/** Filters that look at no more than one element. */
const CONSTANT_FILTERS: ReadonlySet<unknown> = new Set(["length", "first", "last"]);

/** Filters whose result is as long as operand and argument multiplied. */
const MULTIPLYING_FILTERS: ReadonlySet<unknown> = new Set(["join", "indent", "tojson"]);

/**
 * Runs an untrusted template within limits, in this thread:
 *
 * - no value weighs more than 2^20 plus 4 times the input (characters, and 32 for each element, nested values
 *   included). Every operation but the multiplying ones is linear in its operands' weight, and those are refused
 *   before they run. This bounds memory and what one operation can cost, and is deterministic;
 * - syntax nests at most 512 deep at run time, which bounds recursion;
 * - a rendering takes at most 2^20 steps, about half a second: one for each operation, and one for each 128 of the
 *   weight that an operation takes or makes. This bounds time, and is deterministic too. Looking into a value (an
 *   element, a field, its length) costs no more for a large one, so a template stays linear in the conversation;
 * - 10 s pass at most before the last operation begins, should all of the above have been passed by.
 *
 * What exceeds a limit throws an Error. An interpreter renders once.
 */
export class TemplateInterpreter extends Interpreter {
  readonly #deadline = performance.now() + TIME_LIMIT_MS;
  readonly #weights = new WeakMap<Value, number>();
  readonly #mended = new WeakSet<Value>();
  readonly #syntaxSizes = new WeakMap<object, number>();
  #weightLimit = Number.POSITIVE_INFINITY;
  #stepsLeft = Number.POSITIVE_INFINITY;
  #depth = 0;

  /** @param inputs the template's variables @param globals its functions and constants; inputs win */
  constructor(inputs: Readonly<Record<string, unknown>>, globals: Readonly<Record<string, unknown>>) {
    const outer = new Environment();
    const inner = new Environment(outer);
    super(inner);
    for (const [name, value] of Object.entries(globals)) outer.set(name, value);
    outer.set("range", (...bounds: unknown[]) => this.#range(bounds));
    let weight = 0;
    for (const [name, value] of Object.entries(inputs)) weight += this.#weigh(inner.set(name, value));
    this.#weightLimit = BASE_WEIGHT + WEIGHT_PER_INPUT * weight;
    this.#stepsLeft = MAX_STEPS;
  }

  override evaluate(node: Node | undefined, environment: Environment): Value {
    if (node?.type === "Constant") return (node as unknown as Constant).constant;
    const value = this.#evaluate(node, environment);
    this.#spend(this.#weigh(value) / WEIGHT_PER_STEP);
    return value;
  }

  /** Evaluates, and charges for what that takes, but not for the value's weight: the caller does, or looks into it. */
  #evaluate(node: Node | undefined, environment: Environment): Value {
    if (performance.now() > this.#deadline) throw new Error(`the template ran for over ${TIME_LIMIT_MS} ms`);
    this.#spend(1);
    if (++this.#depth > MAX_DEPTH) throw new Error(`the template nests more than ${MAX_DEPTH} deep`);
    try {
      const value = node === undefined ? super.evaluate(node, environment) : this.#run(node, environment);
      this.#weigh(value);
      return value;
    } finally {
      this.#depth--;
    }
  }

  #run(node: Node, environment: Environment): Value {
    const fields = node as Node & Fields;
    switch (node.type) {
      case "MemberExpression": {
        const slice = fields.property.type === "SliceExpression";
        const object = slice
          ? this.evaluate(fields.object, environment)
          : this.#evaluate(fields.object, environment);
        if (typeof object?.value === "string") {
          this.#mend(object);
          if (slice) this.#spend(object.value.length * STEPS_PER_SLICED_CHARACTER);
        }
        return super.evaluate({ ...fields, object: constant(object) } as Node, environment);
      }
      case "FilterExpression":
        return this.#filter(fields.operand, fields.filter, environment);
      case "FilterStatement":
        return this.#filter({ type: "Program", body: fields.body } as Node, fields.filter, environment);
      case "For":
        return super.evaluate({ ...node, body: [...fields.body, TICK] } as Node, environment);
      case "Set": {
        const value = super.evaluate(node, environment);
        if (fields.assignee.type === "MemberExpression") this.evaluate(fields.assignee.object, environment);
        return value;
      }
      case "Macro":
      case "CallStatement":
        // Their syntax is searched for what it uses each time they are come by.
        this.#spend(this.#syntaxSize(node));
        return super.evaluate(node, environment);
      default:
        return super.evaluate(node, environment);
    }
  }

  #spend(steps: number): void {
    this.#stepsLeft -= steps;
    if (this.#stepsLeft < 0) throw new Error(`the template takes more than ${MAX_STEPS} steps`);
  }

  /** The number of nodes of a piece of syntax. */
  #syntaxSize(node: object): number {
    let size = this.#syntaxSizes.get(node);
    if (size !== undefined) return size;
    size = 1;
    for (const child of Object.values(node))
      if (typeof child === "object" && child !== null) size += this.#syntaxSize(child);
    this.#syntaxSizes.set(node, size);
    return size;
  }

  #filter(operandNode: Node, filter: Node & Fields, environment: Environment): Value {
    const looks = CONSTANT_FILTERS.has((filter as { value?: unknown }).value);
    const operand = looks
      ? this.#evaluate(operandNode, environment)
      : this.evaluate(operandNode, environment);
    if (typeof operand?.value === "string") this.#mend(operand);
    const node = { type: "FilterExpression", operand: constant(operand), filter };
    const name = filter.callee?.value;
    if (!MULTIPLYING_FILTERS.has(name)) return super.evaluate(node as Node, environment);

    let longest = 0;
    const evaluated = (argument: Node): Node => {
      const value = this.evaluate(argument, environment);
      longest = Math.max(longest, this.#length(value));
      return constant(value);
    };
    const args = filter.args.map((argument) => {
      if (/^Keyword(Argument|Spread)Expression$|^SpreadExpression$/.test(argument.type)) {
        const field = argument.type === "KeywordArgumentExpression" ? "value" : "argument";
        return { ...argument, [field]: evaluated(argument[field]) };
      }
      return evaluated(argument);
    });
    this.#check((name === "indent" ? lines(operand) : pieces(operand)) * longest);
    return super.evaluate({ ...node, filter: { ...filter, args } } as Node, environment);
  }

  /** How long an argument of a multiplying filter makes each of its occurrences, at most. */
  #length(argument: Value): number {
    const { value } = argument;
    if (typeof value === "number") return value;
    if (typeof value === "string") return value.length;
    return Array.isArray(value) || value instanceof Map ? this.#weigh(argument) : 0;
  }

  /**
   * Mends a text's methods. A template can keep them and call them with little else, so each charges for the text
   * it reads. `replace` multiplies too, so the check goes inside; `strip` and its kin drop the characters they are
   * given, as in Python, not just blanks.
   */
  #mend(text: Value): void {
    if (this.#mended.has(text)) return;
    this.#mended.add(text);
    const content = text.value as string;
    const wrap = (name: string, wrapper: (body: FunctionBody) => FunctionBody) => {
      const method = text.builtins.get(name)!;
      method.value = wrapper(method.value as FunctionBody);
    };
    wrap("replace", (body) => (args, scope) => {
      const [from, to] = [args[0]?.value, args[1]?.value];
      if (typeof from === "string" && typeof to === "string") {
        this.#check(content.split(from).length * to.length);
      }
      return body(args, scope);
    });
    for (const name of ["strip", "lstrip", "rstrip"]) {
      wrap(name, (body) => (args, scope) => {
        const dropped = args[0]?.value;
        if (typeof dropped !== "string") return body(args, scope);
        const Text = text.constructor as new (content: string) => Value;
        return new Text(strip(content, new Set(dropped), name !== "rstrip", name !== "lstrip"));
      });
    }
    for (const [name, { type }] of text.builtins) {
      if (type !== "FunctionValue") continue;
      wrap(name, (body) => (args, scope) => {
        this.#spend(content.length / WEIGHT_PER_STEP);
        return body(args, scope);
      });
    }
  }

  #range(bounds: readonly unknown[]): number[] {
    if (bounds.length < 1 || bounds.length > 3 || !bounds.every(Number.isSafeInteger)) {
      throw new Error("range() takes one to three integers");
    }
    const [first, second, step = 1] = bounds as number[];
    const [start, stop] = second === undefined ? [0, first!] : [first!, second];
    if (step === 0) throw new Error("range() step must not be zero");
    const length = Math.max(0, Math.ceil((stop - start) / step));
    this.#check(length * ELEMENT_WEIGHT);
    return Array.from({ length }, (_, i) => start + i * step);
  }

  #check(weight: number): void {
    if (!(weight <= this.#weightLimit)) throw new Error("the template makes a value that is too large");
  }

  /** Lists and dictionaries cannot change, so their weight is kept; namespaces can, and may not be nested. */
  #weigh(value: Value | undefined, nesting = 0): number {
    const content = value?.value;
    if (typeof content === "string") {
      this.#check(content.length);
      return ELEMENT_WEIGHT + content.length;
    }
    if (!(Array.isArray(content) || content instanceof Map)) return ELEMENT_WEIGHT;
    const known = this.#weights.get(value!);
    if (known !== undefined) return known;
    const mutable = value!.type === "NamespaceValue";
    if (nesting > MAX_NESTING) throw new Error(`a value nests more than ${MAX_NESTING} deep`);
    if (mutable && nesting > 0) throw new Error("a namespace cannot be an element of another value");
    let weight = ELEMENT_WEIGHT;
    if (content instanceof Map) for (const key of content.keys()) weight += key.length;
    for (const child of content.values()) {
      this.#spend(1);
      weight += this.#weigh(child, nesting + 1);
      this.#check(weight);
    }
    if (!mutable) this.#weights.set(value!, weight);
    return weight;
  }
}

function constant(value: Value): Node {
  return { type: "Constant", constant: value } as Node;
}

/** How often an argument of `join` or `tojson` can occur in the result: for each element, once a level. */
function pieces(value: Value, level = 1): number {
  const content = value?.value;
  if (typeof content === "string" && level === 1) return content.length;
  if (!(Array.isArray(content) || content instanceof Map)) return level;
  let count = 2 * level;
  for (const child of content.values()) count += pieces(child, level + 1);
  return count;
}

function lines({ value }: Value): number {
  return typeof value === "string" ? value.split("\n").length : 1;
}

function strip(text: string, dropped: ReadonlySet<string>, atStart: boolean, atEnd: boolean): string {
  const characters = Array.from(text);
  let [start, end] = [0, characters.length];
  while (atStart && start < end && dropped.has(characters[start]!)) start++;
  while (atEnd && end > start && dropped.has(characters[end - 1]!)) end--;
  return characters.slice(start, end).join("");
}
