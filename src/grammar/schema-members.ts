import { type Automaton, automatonOf, automatonOfWords, without } from "./automaton.ts";
import {
  anyOf,
  type Expression,
  type GrammarBuilder,
  inOrder,
  isPossible,
  marker,
  NOTHING,
  type Rule,
  refer,
  text,
} from "./grammar-text.ts";
import { textsMatched } from "./pattern.ts";
import { ANY_TEXT, literal, sequence } from "./regex.ts";
import type { SchemaDocument, SchemaNode } from "./schema-document.ts";
import type { Form, JsonType, Scalar, SchemaForms } from "./schema-forms.ts";
import type { FreeProperties, SchemaObjects } from "./schema-objects.ts";
import type { SchemaScalars } from "./schema-scalars.ts";

/** The way in which an object's members are written that is no JSON: one after the other, each a name and a value. */
export interface MemberForm {
  /** Before a name, between name and value, after a value, and between members. */
  readonly open: string;
  readonly equals: string;
  readonly close: string;
  readonly between: string;
  /** Strings stand as they are and have none of these texts in them. Default: all values are JSON. */
  readonly rawWithout?: readonly string[];
  /**
   * What is on both sides of strings, which stand as they are: a token, by its id, or a text that they do not have in them. Default:
   * all values are JSON.
   */
  readonly quote?: number | string;
  /** Values have Python's names of `true`, `false` and `null`. Default false. */
  readonly python?: boolean;
}

/** The readers of a schema, and the values that it allows. */
export interface MemberParts {
  readonly builder: GrammarBuilder;
  readonly document: SchemaDocument;
  readonly forms: SchemaForms;
  readonly scalars: SchemaScalars;
  readonly objects: SchemaObjects;
  /** A value that all of the schemas allow, as JSON. */
  value(schemas: readonly SchemaNode[]): Expression;
  /** A form's values of one type. */
  ofType(form: Form, type: JsonType): Expression;
  spelled(value: Scalar): string;
}

/** Texts that are read as something else than a string where a value may be that, too. */
const NO_STRING =
  '\\s*(?:["\\-0-9\\[{].*|[Nn][Uu][Ll][Ll]\\s*|[Nn][Oo][Nn][Ee]\\s*|[Tt][Rr][Uu][Ee]\\s*|[Ff][Aa][Ll][Ss][Ee]\\s*)';
/** Names of members that no schema gives. */
const FREE_NAME = "[A-Za-z_][A-Za-z0-9_]{0,31}";
/** Names that are written as they stand. */
const BARE_NAME = /^[\p{L}_][\p{L}\p{N}_.-]*$/u;

/** Writes the members of the root's objects. */
export class SchemaMembers {
  readonly #states = new Map<string, Rule>();

  constructor(
    private readonly parts: MemberParts,
    private readonly form: MemberForm,
  ) {}

  /** @throws SchemaError if no object is valid, or one cannot be written so. */
  write(): Expression {
    const { document, forms } = this.parts;
    const objects = forms.of([document.root]).filter(({ types }) => types.has("object"));
    const members = anyOf(...objects.map((each) => this.#membersOf(each)));
    if (!isPossible(members)) throw document.error("schema", "", "no object is valid under it");
    return members;
  }

  #membersOf(object: Form): Expression {
    const { form } = this;
    const { document, objects } = this.parts;
    const { named, free, min, max } = objects.members(object);
    const numRequired = named.filter(({ required }) => required).length;
    if (min > numRequired || max < named.length)
      throw document.error(
        "minProperties",
        "",
        "the number of arguments is not limited where they are no JSON",
      );
    const written = (name: Expression, schemas: readonly SchemaNode[]) =>
      inOrder(text(form.open), name, text(form.equals), this.#valueOf(schemas));
    // States by the members that are left, and by whether one has been written.
    const rest = (index: number, isFirst: boolean): Expression => {
      const { name, required, schemas } = named[index] ?? {};
      const before = isFirst || form.between === "" ? [] : [text(form.between)];
      if (name === undefined) return this.#freeMembers(free, before, written);
      if (!BARE_NAME.test(name))
        throw document.error("properties", "", `${JSON.stringify(name)} is no name of an argument here`);
      const present = inOrder(...before, written(text(name), schemas!), this.#rest(rest, index + 1, false));
      return anyOf(present, ...(required ? [] : [this.#rest(rest, index + 1, isFirst)]));
    };
    this.#states.clear();
    return this.#rest(rest, 0, true);
  }

  #rest(make: (index: number, isFirst: boolean) => Expression, index: number, isFirst: boolean): Expression {
    const key = `${index} ${isFirst}`;
    let rule = this.#states.get(key);
    if (!rule) {
      rule = this.parts.builder.rule("arguments");
      this.#states.set(key, rule);
      rule.body = make(index, isFirst);
    }
    return refer(rule);
  }

  #freeMembers(
    free: readonly FreeProperties[],
    before: readonly Expression[],
    written: (name: Expression, schemas: readonly SchemaNode[]) => Expression,
  ): Expression {
    const any = free.find(({ names }) => names === undefined);
    if (!any) return NOTHING;
    const name = this.parts.builder.automaton(textsMatched(FREE_NAME, this.parts.builder.budget), "name");
    const more = this.parts.builder.rule("more");
    const member = written(name, any.schemas);
    more.body = anyOf(NOTHING, inOrder(text(this.form.between), member, refer(more)));
    return anyOf(NOTHING, inOrder(...before, member, refer(more)));
  }

  /** A value, and what closes it: a text is one rule after the other up to there. */
  #valueOf(schemas: readonly SchemaNode[]): Expression {
    const { builder, forms, value } = this.parts;
    const { quote, close, rawWithout = typeof quote === "string" ? [quote] : undefined } = this.form;
    if (!rawWithout && quote === undefined) return inOrder(value(schemas), text(close));
    const quoted = quote === undefined ? NOTHING : typeof quote === "string" ? text(quote) : marker(quote);
    const { budget } = builder;
    const all = forms.of(schemas);
    const isMixed = all.some(({ types }) => types.size > 1 || !types.has("string"));
    const excluded = (rawWithout ?? []).map((each) =>
      automatonOf(sequence(ANY_TEXT, literal(each), ANY_TEXT), budget),
    );
    if (isMixed && quote === undefined) excluded.push(textsMatched(NO_STRING, budget));
    const others = all.flatMap((form) => this.#otherValues(form));
    const strings = all.flatMap((form) => {
      const texts = this.#strings(form);
      if (!texts) return [];
      const raw = excluded.reduce((left, each) => without(left, each, budget), texts);
      return [inOrder(quoted, builder.automaton(raw, "text", { end: inOrder(quoted, text(close)) }))];
    });
    return anyOf(...others.map((other) => inOrder(other, text(close))), ...strings);
  }

  #otherValues(form: Form): Expression[] {
    const { scalars, ofType, spelled } = this.parts;
    const values = scalars.values(form)?.filter((value) => typeof value !== "string");
    if (values) return values.map((value) => text(spelled(value)));
    return [...form.types].filter((type) => type !== "string").map((type) => ofType(form, type));
  }

  /** A form's strings; undefined: it has none. */
  #strings(form: Form): Automaton | undefined {
    const { scalars, builder } = this.parts;
    const values = scalars.values(form)?.filter((value) => typeof value === "string");
    if (values) return values.length > 0 ? automatonOfWords(values) : undefined;
    if (!form.types.has("string")) return undefined;
    return scalars.strings(form) ?? automatonOf(ANY_TEXT, builder.budget);
  }
}
