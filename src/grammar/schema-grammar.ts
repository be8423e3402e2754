import { Budget } from "./budget.ts";
import { charSet, charsOf, invert, unite } from "./char-set.ts";
import {
  type AutomatonText,
  anyOf,
  type Expression,
  GrammarBuilder,
  inOrder,
  isPossible,
  jsonChar,
  NEVER,
  NOTHING,
  oneAscii,
  oneOf,
  type Rule,
  refer,
  text,
} from "./grammar-text.ts";
import { SchemaArrays } from "./schema-arrays.ts";
import { areDisjoint } from "./schema-disjoint.ts";
import { SchemaDocument, type SchemaNode } from "./schema-document.ts";
import { type Form, type JsonType, type Scalar, SchemaForms } from "./schema-forms.ts";
import { type MemberForm, SchemaMembers } from "./schema-members.ts";
import { type FreeProperties, SchemaObjects } from "./schema-objects.ts";
import { SchemaScalars } from "./schema-scalars.ts";

export interface SchemaGrammarOptions {
  /** The parameter that the schema came in. */
  readonly param: string;
  /** JSON without any white space. Default false: as models write it, on one line or indented. */
  readonly compact?: boolean;
  /** Python's names of `true`, `false` and `null`. Default false. */
  readonly python?: boolean;
}

/** Spaces or tabs that a line may be indented by. */
const MAX_INDENT = 32;

/**
 * The grammar, in xgrammar's EBNF with rule `root`, of JSON texts that are valid under a JSON Schema (2020-12). Every text
 * of the grammar is valid. The converse does not hold: properties come in the order of the schema; those that an object's schema
 * does not mention are left out, unless it has `additionalProperties`; numbers have at most 15 digits before and after the point;
 * white space is that of one line or of indented lines; keywords for one type imply it where `type` is missing.
 * @throws SchemaError naming what the schema has that cannot be enforced; GrammarTooComplexError
 */
export function schemaGrammar(schema: unknown, options: SchemaGrammarOptions): string {
  const builder = new GrammarBuilder(new Budget(options.param));
  return builder.write(schemaExpression(builder, schema, options))!;
}

/** The same as a part of a larger grammar. */
export function schemaExpression(
  builder: GrammarBuilder,
  schema: unknown,
  options: SchemaGrammarOptions,
): Expression {
  return new SchemaGrammar(builder, new SchemaDocument(options.param, schema), options).value();
}

/** The members of any object that is valid under a schema, as a part of a larger grammar. */
export function membersExpression(
  builder: GrammarBuilder,
  schema: unknown,
  options: SchemaGrammarOptions,
  form: MemberForm,
): Expression {
  const document = new SchemaDocument(options.param, schema);
  return new SchemaGrammar(builder, document, { ...options, python: form.python ?? false }).members(form);
}

/** Characters that follow a value or a name, if anything does: in JSON, and in the members of a call. */
const AFTER_VALUE = charsOf(" \n,:}])");
/** Characters that values and names begin with, Python's among them, and those that end what they would be in. */
const BEFORE_VALUE = charsOf('"{}[]-0123456789tfnTFN');
const UNQUOTED: AutomatonText = { ahead: AFTER_VALUE };
const WITHIN_QUOTES: AutomatonText = { spell: jsonChar, end: text('"'), ahead: AFTER_VALUE };

class SchemaGrammar {
  readonly #builder: GrammarBuilder;
  readonly #compact: boolean;
  readonly #python: boolean;
  readonly #forms: SchemaForms;
  readonly #scalars: SchemaScalars;
  readonly #arrays: SchemaArrays;
  readonly #objects: SchemaObjects;
  /** By the ids of the schemas that a value must satisfy. */
  readonly #values = new Map<string, Rule>();

  constructor(
    builder: GrammarBuilder,
    private readonly document: SchemaDocument,
    { compact = false, python = false }: SchemaGrammarOptions,
  ) {
    const { budget } = builder;
    this.#builder = builder;
    this.#compact = compact;
    this.#python = python;
    this.#scalars = new SchemaScalars(document, budget);
    this.#arrays = new SchemaArrays(document, this.#scalars);
    this.#forms = new SchemaForms(document, budget, (a, b) => areDisjoint(a, b, readers, budget));
    this.#objects = new SchemaObjects(document, this.#forms, this.#scalars, budget);
    const readers = {
      forms: this.#forms,
      scalars: this.#scalars,
      arrays: this.#arrays,
      objects: this.#objects,
    };
  }

  /** Any valid value. @throws SchemaError if there is none */
  value(): Expression {
    const value = this.#value([this.document.root]);
    if (!isPossible(value)) throw this.document.error("schema", "", "no value is valid under it");
    return value;
  }

  /** The members of any valid object, in a form of their own. @throws SchemaError if there is none */
  members(form: MemberForm): Expression {
    const parts = {
      ...{ builder: this.#builder, document: this.document, forms: this.#forms },
      ...{ scalars: this.#scalars, objects: this.#objects },
      value: (schemas: readonly SchemaNode[]) => this.#value(schemas),
      ofType: (of: Form, type: JsonType) => this.#ofType(of, type),
      spelled: (value: Scalar) => this.#spelled(value),
    };
    return new SchemaMembers(parts, form).write();
  }

  /** A value that all of these schemas allow. */
  #value(nodes: readonly SchemaNode[]): Expression {
    const ids = [...new Set(nodes.map(({ id }) => id))].sort((a, b) => a - b);
    const key = ids.join(",");
    let rule = this.#values.get(key);
    if (!rule) {
      rule = this.#builder.rule("value");
      this.#values.set(key, rule);
      const options = this.#forms.of(nodes).flatMap((form) => this.#form(form));
      rule.body = anyOf(...options);
    }
    return refer(rule);
  }

  #form(form: Form): Expression[] {
    const values = this.#scalars.values(form);
    if (values) return values.map((value) => text(this.#spelled(value)));
    return [...form.types].map((type) => this.#ofType(form, type));
  }

  #spelled(value: Scalar): string {
    if (typeof value === "string" || typeof value === "number" || !this.#python) return JSON.stringify(value);
    return value === null ? "None" : value ? "True" : "False";
  }

  #ofType(form: Form, type: JsonType): Expression {
    if (type === "null") return text(this.#spelled(null));
    if (type === "boolean") return anyOf(text(this.#spelled(true)), text(this.#spelled(false)));
    if (type === "number") return this.#number(form);
    if (type === "string") return this.#string(form);
    return type === "array" ? this.#array(form) : this.#object(form);
  }

  #number(form: Form): Expression {
    const bounds = form.schemas.some(({ json }) =>
      ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"].some(
        (each) => each in json,
      ),
    );
    const hint = form.integers ? "integer" : "number";
    const make = () => this.#builder.automaton(this.#scalars.numbers(form), hint, UNQUOTED);
    return bounds ? make() : this.#builder.shared(hint, make);
  }

  #string(form: Form): Expression {
    const texts = this.#scalars.strings(form);
    if (!texts) return this.#builder.shared("string", () => this.#anyString());
    return inOrder(text('"'), this.#builder.automaton(texts, "text", WITHIN_QUOTES));
  }

  /** Right-recursive: a repetition takes xgrammar a thousand times as long. */
  #anyString(): Expression {
    const rest = this.#builder.rule("characters");
    rest.ahead = AFTER_VALUE;
    const hex = oneAscii(charSet([48, 57], [65, 70], [97, 102]));
    const again = refer(rest);
    const plain = invert(unite(charSet([0, 31]), charsOf('"\\')));
    // Halves of surrogate pairs come in pairs.
    const unicode = anyOf(
      inOrder(oneAscii(charSet([48, 57], [65, 67], [69, 70], [97, 99], [101, 102])), hex, hex, hex),
      inOrder(oneAscii(charsOf("dD")), oneAscii(charSet([48, 55])), hex, hex),
      inOrder(
        ...[oneAscii(charsOf("dD")), oneAscii(charsOf("89abAB")), hex, hex, text("\\u")],
        ...[oneAscii(charsOf("dD")), oneAscii(charsOf("cdefCDEF")), hex, hex],
      ),
    );
    rest.body = anyOf(
      text('"'),
      ...oneOf(plain).map((char) => inOrder(char, again)),
      inOrder(text("\\"), oneAscii(charsOf('"\\/bfnrt')), again),
      inOrder(
        text("\\u"),
        this.#builder.shared("unicode", () => unicode),
        again,
      ),
    );
    return inOrder(text('"'), again);
  }

  #array(form: Form): Expression {
    const { prefix, rest, min, max } = this.#arrays.items(form);
    const schemasAt = (i: number) => prefix[i] ?? rest;
    // From here on every state is the same, unless there is an end to count to.
    const last = Number.isFinite(max) ? max : Math.max(prefix.length, min, 1);
    const states = Array.from({ length: last + 1 }, () => this.#builder.rule("items"));
    for (const [count, state] of states.entries()) {
      const end = count >= min ? [count === 0 ? text("]") : inOrder(this.#space(), text("]"))] : [];
      const next = states[Math.min(count + 1, last)]!;
      const item = inOrder(...this.#separator(count), this.#value(schemasAt(count)), refer(next));
      state.body = anyOf(...end, ...(count < max ? [item] : []));
    }
    return inOrder(text("["), this.#space(), refer(states[0]!));
  }

  #object(form: Form): Expression {
    const { named, free, min, max } = this.#objects.members(form);
    // Members are counted as far as it matters.
    const cap = Number.isFinite(max) ? max : Math.max(1, min);
    const count = (written: number) => Math.min(written, cap);
    const states = new Map<string, Rule>();
    const open: (() => void)[] = [];
    const state = (index: number, written: number): Expression => {
      const key = `${index} ${written}`;
      let rule = states.get(key);
      if (!rule) {
        rule = this.#builder.rule("members");
        states.set(key, rule);
        const made = rule;
        open.push(() => {
          made.body = index < named.length ? member(index, written) : others(written);
        });
      }
      return refer(rule);
    };
    const member = (index: number, written: number): Expression => {
      const { name, required, schemas } = named[index]!;
      const key = inOrder(text(JSON.stringify(name)), ...this.#colon());
      const present = inOrder(
        ...this.#separator(written),
        key,
        this.#value(schemas),
        state(index + 1, count(written + 1)),
      );
      const skipped = required ? NEVER : state(index + 1, written);
      return anyOf(written < max ? present : NEVER, skipped);
    };
    const others = (written: number): Expression => {
      const end = inOrder(written === 0 ? NOTHING : this.#space(), text("}"));
      // Two names that are not given might be the same: only one of them counts for the minimum.
      const canAdd = written < max && min - written <= 1;
      const more = free.map(({ names, schemas }) =>
        inOrder(
          ...this.#separator(written),
          this.#key(names),
          ...this.#colon(),
          this.#value(schemas),
          state(named.length, count(written + 1)),
        ),
      );
      return anyOf(...(written >= min ? [end] : []), ...(canAdd ? more : []));
    };
    const start = state(0, 0);
    for (let make = open.pop(); make; make = open.pop()) make();
    return inOrder(text("{"), this.#space(), start);
  }

  #key(names: FreeProperties["names"]): Expression {
    if (!names) return this.#builder.shared("string", () => this.#anyString());
    return inOrder(text('"'), this.#builder.automaton(names, "key", WITHIN_QUOTES));
  }

  #separator(written: number): Expression[] {
    return written === 0 ? [] : [text(","), this.#space()];
  }

  #colon(): Expression[] {
    return this.#compact
      ? [text(":")]
      : [text(":"), this.#builder.shared("gap", () => anyOf(NOTHING, text(" ")), BEFORE_VALUE)];
  }

  /** White space between the parts of an array or object: none, a space, or a new line and what it is indented by. */
  #space(): Expression {
    if (this.#compact) return NOTHING;
    return this.#builder.shared(
      "space",
      () => {
        const indents = Array.from({ length: MAX_INDENT }, () => this.#builder.rule("indent"));
        for (const [i, rule] of indents.entries()) {
          const next = indents[i + 1];
          rule.ahead = BEFORE_VALUE;
          rule.body = anyOf(NOTHING, ...(next ? [inOrder(oneAscii(charsOf(" \t")), refer(next))] : []));
        }
        return anyOf(NOTHING, text(" "), inOrder(text("\n"), refer(indents[0]!)));
      },
      BEFORE_VALUE,
    );
  }
}
