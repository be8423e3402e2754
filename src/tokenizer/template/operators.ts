import { type Budget, MAX_NESTING } from "./budget.ts";
import { str } from "./printing.ts";
import {
  Callable,
  Dict,
  isNumeric,
  iterate,
  Namespace,
  sequence,
  Tuple,
  typeName,
  Undefined,
  type Value,
  View,
} from "./values.ts";

/** Python's `a == b`. */
export function equals(a: Value, b: Value, budget: Budget, nesting = 0): boolean {
  if (nesting > MAX_NESTING) throw new Error(`a value nests more than ${MAX_NESTING} deep`);
  budget.step();
  // biome-ignore lint/suspicious/noDoubleEquals: compares an int with a float by value
  if (isNumeric(a) && isNumeric(b)) return a == b;
  if (typeof a === "string" || typeof b === "string") {
    if (typeof a === "string") budget.text(a.length);
    return a === b;
  }
  const same = (left: readonly Value[], right: readonly Value[]) =>
    left.length === right.length && left.every((item, i) => equals(item, right[i]!, budget, nesting + 1));
  if (Array.isArray(a)) return Array.isArray(b) && same(a, b);
  if (a instanceof Tuple) return b instanceof Tuple && same(a.items, b.items);
  if (a instanceof View) return b instanceof View && a.type === b.type && same(a.items, b.items);
  if (a instanceof Undefined) return b instanceof Undefined;
  if (!(a instanceof Dict && b instanceof Dict)) return a === b;
  return (
    a.size === b.size &&
    a.entries().every(([key, value]) => {
      const other = b.get(key);
      return other !== undefined && equals(value, other, budget, nesting + 1);
    })
  );
}

/** Negative, 0 or positive, as `a` sorts before, with or after `b`. @throws Error for types that have no order */
export function compare(a: Value, b: Value, budget: Budget, nesting = 0): number {
  if (nesting > MAX_NESTING) throw new Error(`a value nests more than ${MAX_NESTING} deep`);
  budget.step();
  if (isNumeric(a) && isNumeric(b)) return a < b ? -1 : a > b ? 1 : 0;
  if (typeof a === "string" && typeof b === "string") {
    budget.text(Math.min(a.length, b.length));
    return compareText(a, b);
  }
  const [left, right] = [sequence(a), sequence(b)];
  if (left === undefined || right === undefined || typeName(a) !== typeName(b)) {
    refuseUndefined(a, b);
    throw new Error(`'<' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
  }
  for (let i = 0; i < left.length && i < right.length; i++) {
    if (!equals(left[i]!, right[i]!, budget)) return compare(left[i]!, right[i]!, budget, nesting + 1);
  }
  return left.length - right.length;
}

/** By code points, not by UTF-16 units. */
function compareText(a: string, b: string): number {
  let i = 0;
  while (i < a.length && a.charCodeAt(i) === b.charCodeAt(i)) i++;
  if (i === a.length || i === b.length) return a.length - b.length;
  const at = (text: string) => {
    const before = text.charCodeAt(i - 1);
    return text.codePointAt(i > 0 && before >= 0xd800 && before < 0xdc00 ? i - 1 : i)!;
  };
  return at(a) - at(b);
}

/** Python's `item in container`. */
export function contains(container: Value, item: Value, budget: Budget): boolean {
  if (typeof container === "string") {
    if (typeof item !== "string") {
      throw new Error(`'in <string>' requires string as left operand, not ${typeName(item)}`);
    }
    budget.text(container.length);
    return container.includes(item);
  }
  if (container instanceof Dict) return container.has(item);
  return iterate(container, budget).some((element) => equals(element, item, budget));
}

/** An arithmetic operator, or `~`. @throws Error for operands that it has no meaning for */
export function arithmetic(operator: string, left: Value, right: Value, budget: Budget): Value {
  if (operator === "~") {
    const joined = str(left, budget) + str(right, budget);
    budget.text(joined.length);
    return joined;
  }
  refuseUndefined(left, right);
  if (isNumeric(left) && isNumeric(right)) return numbers(operator, left, right, budget);
  if (operator === "+") {
    if (typeof left === "string" && typeof right === "string") {
      budget.text(left.length + right.length);
      return left + right;
    }
    const all = [...(sequence(left) ?? []), ...(sequence(right) ?? [])];
    budget.step(all.length);
    if (Array.isArray(left) && Array.isArray(right)) return all;
    if (left instanceof Tuple && right instanceof Tuple) return new Tuple(all);
  }
  if (operator === "*") {
    const [repeated, times] = isNumeric(left) ? [right, left] : [left, right];
    if (typeof times === "bigint" || typeof times === "boolean")
      return repeat(repeated, Number(times), budget);
  }
  if (operator === "%" && typeof left === "string") return percentFormat(left, right, budget);
  throw new Error(
    `unsupported operand type(s) for ${operator}: '${typeName(left)}' and '${typeName(right)}'`,
  );
}

function numbers(operator: string, a: boolean | bigint | number, b: typeof a, budget: Budget): Value {
  if (typeof a !== "number" && typeof b !== "number" && operator !== "/") {
    const [left, right] = [BigInt(a), BigInt(b)];
    if ((operator === "//" || operator === "%") && right === 0n) throw new Error("division by zero");
    switch (operator) {
      case "+":
        return budget.integer(left + right);
      case "-":
        return budget.integer(left - right);
      case "*":
        return budget.integer(left * right);
      case "//":
        return (left - modulo(left, right)) / right;
      case "%":
        return modulo(left, right);
    }
    if (right >= 0n) {
      if (right > 256n && left * left > 1n) throw new Error("an integer has more than 256 bits");
      return budget.integer(left ** right);
    }
  }
  const [left, right] = [Number(a), Number(b)];
  if (operator === "**") return left ** right;
  if (operator === "+") return left + right;
  if (operator === "-") return left - right;
  if (operator === "*") return left * right;
  if (right === 0) throw new Error("division by zero");
  if (operator === "/") return left / right;
  const quotient = Math.floor(left / right);
  return operator === "//" ? quotient : left - quotient * right;
}

/** The remainder has the divisor's sign, as in Python. */
function modulo(left: bigint, right: bigint): bigint {
  const rest = left % right;
  return rest !== 0n && rest < 0n !== right < 0n ? rest + right : rest;
}

function repeat(value: Value, times: number, budget: Budget): Value {
  const count = Math.max(0, times);
  if (typeof value === "string") {
    budget.text(value.length * count);
    return value.repeat(count);
  }
  const items = sequence(value);
  if (items === undefined || value instanceof View) {
    throw new Error(`can't multiply sequence by '${typeName(value)}'`);
  }
  budget.step(items.length * count);
  const all = Array.from({ length: count }, () => items).flat();
  return value instanceof Tuple ? new Tuple(all) : all;
}

/** `"%s of %d" % (a, b)`, with the conversions `s`, `d`, `i` and `%`. */
function percentFormat(format: string, operand: Value, budget: Budget): string {
  const values = operand instanceof Tuple ? [...operand.items] : [operand];
  const written = format.replace(/%(.?)/gs, (_, conversion: string) => {
    if (conversion === "%") return "%";
    const value = values.shift();
    if (value === undefined) throw new Error("not enough arguments for format string");
    if (conversion === "s") return str(value, budget);
    if ((conversion === "d" || conversion === "i") && isNumeric(value))
      return String(BigInt(Math.trunc(Number(value))));
    throw new Error(`the format %${conversion} is not supported`);
  });
  if (values.length > 0 && !(operand instanceof Dict)) throw new Error("not all arguments converted");
  budget.text(written.length);
  return written;
}

/** `value[key]`: an element, or what is undefined. */
export function item(value: Value, key: Value, budget: Budget): Value | undefined {
  if (value instanceof Dict) return value.get(key);
  if (typeof key !== "bigint" && typeof key !== "boolean") return undefined;
  const index = Number(key);
  if (typeof value === "string" && /[\ud800-\udfff]/.test(value)) {
    budget.step(value.length);
    return Array.from(value).at(index);
  }
  return typeof value === "string" ? value.at(index) : sequence(value)?.at(index);
}

/** `value[start:stop:step]` of a text or sequence. */
export function slice(value: Value, bounds: readonly (number | undefined)[], budget: Budget): Value {
  const items = typeof value === "string" ? iterate(value, budget) : sequence(value);
  if (items === undefined) throw new Error(`'${typeName(value)}' object cannot be sliced`);
  const [start, stop, step = 1] = bounds;
  if (step === 0) throw new Error("slice step cannot be zero");
  const { length } = items;
  const [lowest, highest] = step > 0 ? [0, length] : [-1, length - 1];
  const clamp = (bound: number | undefined, fallback: number) =>
    bound === undefined ? fallback : Math.min(Math.max(bound < 0 ? bound + length : bound, lowest), highest);
  const first = clamp(start, step > 0 ? lowest : highest);
  const end = clamp(stop, step > 0 ? highest : lowest);
  const taken: Value[] = [];
  for (let i = first; step > 0 ? i < end : i > end; i += step) taken.push(items[i]!);
  budget.step(taken.length);
  if (typeof value === "string") return taken.join("");
  return value instanceof Tuple ? new Tuple(taken) : taken;
}

/** @throws Error if an operand is undefined */
export function refuseUndefined(...values: readonly Value[]): void {
  for (const value of values) if (value instanceof Undefined) throw value.error();
}

/** The keys of a mapping with their values, for `**` and filters. */
export function mapping(value: Value): Dict | undefined {
  if (value instanceof Namespace) return new Dict(value.fields);
  return value instanceof Dict ? value : undefined;
}

/** @throws Error if `value` cannot be called */
export function callable(value: Value): Callable {
  if (value instanceof Callable) return value;
  if (value instanceof Undefined) throw new Error(value.message);
  throw new Error(`'${typeName(value)}' object is not callable`);
}
