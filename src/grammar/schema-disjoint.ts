import { both, isEmpty, matches } from "./automaton.ts";
import type { Budget } from "./budget.ts";
import type { SchemaArrays } from "./schema-arrays.ts";
import type { SchemaNode } from "./schema-document.ts";
import type { Form, JsonType, SchemaForms } from "./schema-forms.ts";
import type { SchemaObjects } from "./schema-objects.ts";
import type { SchemaScalars } from "./schema-scalars.ts";

/** The readers of forms. */
export interface FormReaders {
  readonly forms: SchemaForms;
  readonly scalars: SchemaScalars;
  readonly arrays: SchemaArrays;
  readonly objects: SchemaObjects;
}

/** Levels of objects and arrays that are looked into. */
const MAX_DEPTH = 3;

/**
 * True when no value that is written of form `a` has form `b`, as far as it can be seen: by types, values, texts, the lengths of
 * arrays, or an item or property that one of them must have and whose schemas are disjoint.
 */
export function areDisjoint(a: Form, b: Form, readers: FormReaders, budget: Budget, depth = 0): boolean {
  const { scalars, arrays, objects, forms } = readers;
  budget.spend(30, "it has too many alternatives");
  const apart = (left: readonly SchemaNode[], right: readonly SchemaNode[]) =>
    depth < MAX_DEPTH &&
    forms
      .of(left)
      .every((x) => forms.of(right, "all").every((y) => areDisjoint(x, y, readers, budget, depth + 1)));

  const disjoint: Readonly<Record<JsonType, () => boolean>> = {
    null: () => haveNoCommonValue(a, b, readers),
    boolean: () => haveNoCommonValue(a, b, readers),
    number: () =>
      haveNoCommonValue(a, b, readers) ||
      (!a.values && !b.values && isEmpty(both(scalars.numbers(a), scalars.numbers(b), budget))),
    string: () => {
      if (haveNoCommonValue(a, b, readers)) return true;
      const [left, right] = [scalars.strings(a), scalars.strings(b)];
      const [values, texts] = a.values ? [a.values, right] : [b.values, left];
      if (values)
        return !!texts && values.every((value) => typeof value !== "string" || !matches(texts, value));
      return !!left && !!right && isEmpty(both(left, right, budget));
    },
    array: () => {
      const [left, right] = [arrays.items(a), arrays.items(b)];
      if (left.min > right.max || right.min > left.max) return true;
      const common = Math.min(Math.max(left.min, right.min), MAX_DEPTH);
      return Array.from({ length: common }, (_, i) => i).some((i) =>
        apart(left.prefix[i] ?? left.rest, right.prefix[i] ?? right.rest),
      );
    },
    object: () => {
      const [left, right] = [objects.members(a), objects.members(b)];
      const partner = new Map(right.named.map((property) => [property.name, property]));
      return left.named.some(({ name, required, schemas }) => {
        const other = partner.get(name);
        return !!other && (required || other.required) && apart(schemas, other.schemas);
      });
    },
  };
  return [...a.types].every((type) => !b.types.has(type) || disjoint[type]());
}

/** Both forms list their values, and they share none. Spelled differently, a number is the same value. */
function haveNoCommonValue(a: Form, b: Form, { scalars }: FormReaders): boolean {
  const [left, right] = [scalars.values(a), scalars.values(b)];
  return !!left && !!right && !left.some((value) => right.includes(value));
}
