import type { Budget } from "./budget.ts";
import { str } from "./printing.ts";
import { type Arguments, Dict, integer, iterate, Namespace, type Value, View } from "./values.ts";

/** Jinja's sandbox allows no longer ranges. */
const MAX_RANGE = 100_000;

/** The functions that every template may call. */
export const GLOBALS: Readonly<Record<string, (args: Arguments, budget: Budget) => Value>> = {
  range,
  dict: makeDict,
  namespace: makeNamespace,
};

function range({ positional }: Arguments, budget: Budget): View {
  const bounds = positional.map((bound) => integer(bound, "a range's bound"));
  if (bounds.length < 1 || bounds.length > 3) throw new Error("range() takes one to three integers");
  const [start, stop] = bounds.length === 1 ? [0, bounds[0]!] : [bounds[0]!, bounds[1]!];
  const step = bounds[2] ?? 1;
  if (step === 0) throw new Error("range() step must not be zero");
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (length > MAX_RANGE) throw new Error(`a range cannot be longer than ${MAX_RANGE}`);
  budget.step(length);
  return new View(
    "range",
    Array.from({ length }, (_, i) => BigInt(start + i * step)),
  );
}

function makeDict({ positional: [source], keywords }: Arguments, budget: Budget): Dict {
  const entries: (readonly [Value, Value])[] = [];
  if (source instanceof Dict) entries.push(...source.entries());
  else if (source !== undefined) {
    for (const pair of iterate(source, budget)) {
      const [key, value, ...more] = iterate(pair, budget);
      if (key === undefined || value === undefined || more.length > 0) throw new Error("dict() takes pairs");
      entries.push([key, value]);
    }
  }
  return new Dict([...entries, ...keywords]);
}

function makeNamespace(args: Arguments, budget: Budget): Namespace {
  const namespace = new Namespace();
  for (const [key, value] of makeDict(args, budget).entries()) {
    namespace.fields.set(fieldName(str(key, budget)), value);
  }
  return namespace;
}

/** transformers keeps a namespace's names apart from Python's own. */
export function fieldName(name: string): string {
  if (name.startsWith("_"))
    throw new Error(`a namespace's attribute cannot begin with an underscore: ${name}`);
  return name;
}
