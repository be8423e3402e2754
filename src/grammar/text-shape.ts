import { InvalidRequestError, SchemaError } from "../base/errors.ts";
import type { ResolvedOutputs } from "../base/structured-outputs.ts";
import { automatonOf, without } from "./automaton.ts";
import { Budget } from "./budget.ts";
import { outputsExpression } from "./grammar-source.ts";
import {
  anyOf,
  type Expression,
  GrammarBuilder,
  inOrder,
  marker,
  NOTHING,
  refer,
  text,
} from "./grammar-text.ts";
import { textsMatched } from "./pattern.ts";
import { ANY_TEXT, literal, sequence } from "./regex.ts";
import { membersExpression, schemaExpression } from "./schema-grammar.ts";
import type { MemberForm } from "./schema-members.ts";

/** A text as a composition of parts: plain data, which may cross threads. */
export type TextShape =
  | { readonly kind: "text"; readonly text: string }
  /** The token of this id, which other tokens cannot write. */
  | { readonly kind: "token"; readonly id: number }
  /** What structured outputs ask for, as plain data. */
  | { readonly kind: "outputs"; readonly outputs: ResolvedOutputs }
  | ArgumentsShape
  | FreeShape
  | { readonly kind: "sequence"; readonly parts: readonly TextShape[] }
  | { readonly kind: "choice"; readonly options: readonly TextShape[] }
  /** One part or more, with a separator between them. */
  | { readonly kind: "repeat"; readonly part: TextShape; readonly separator: TextShape };

/** The arguments of a call. */
export interface ArgumentsShape {
  readonly kind: "arguments";
  /** JSON schema of an object, as JSON text. */
  readonly schema: string;
  /** The parameter that it came in, for errors. */
  readonly param: string;
  /** Refuse a schema that cannot be enforced; otherwise its arguments are any object. */
  readonly strict: boolean;
  /** Default: a JSON object. */
  readonly members?: MemberForm;
}

/** Any text. */
export interface FreeShape {
  readonly kind: "free";
  /** Texts that do not occur in it. */
  readonly without: readonly string[];
  /** Characters that none but white space begins with. Default none. */
  readonly notFirst?: string;
}

const ANY_OBJECT = { type: "object" };

/**
 * The grammar of a shape, in EBNF with rule `root`.
 * @param param the parameter that errors name, but for schemas'
 * @throws as `grammarOf`, and SchemaError for strict arguments.
 */
export function shapeGrammar(shape: TextShape, param: string): string {
  const builder = new GrammarBuilder(new Budget(param));
  const grammar = builder.write(new ShapeWriter(builder).express(shape, NOTHING));
  if (grammar === undefined) throw new InvalidRequestError(param, `${param}: no text satisfies it`);
  return grammar;
}

/**
 * Shapes as right-linear rules: each part says what follows it, so that free text, however long, is one rule after the other
 * and none is complete before the whole is. Otherwise each of its characters would cost as much as there are before it.
 */
class ShapeWriter {
  constructor(private readonly builder: GrammarBuilder) {}

  express(shape: TextShape, then: Expression): Expression {
    switch (shape.kind) {
      case "text":
        return inOrder(text(shape.text), then);
      case "token":
        return inOrder(marker(shape.id), then);
      case "outputs":
        return inOrder(outputsExpression(this.builder, shape.outputs), then);
      case "arguments":
        return inOrder(this.#arguments(shape), then);
      case "free":
        return this.#free(shape, then);
      case "sequence":
        return shape.parts.reduceRight((rest, part) => this.express(part, rest), then);
      case "choice": {
        const rest = this.#rule("rest", then);
        return anyOf(...shape.options.map((option) => this.express(option, rest)));
      }
      case "repeat": {
        const again = this.builder.rule("again");
        const part = this.#rule("part", this.express(shape.part, refer(again)));
        again.body = anyOf(then, this.express(shape.separator, part));
        return part;
      }
    }
  }

  #rule(hint: string, body: Expression): Expression {
    const rule = this.builder.rule(hint);
    rule.body = body;
    return refer(rule);
  }

  #free({ without: excluded, notFirst = "" }: FreeShape, then: Expression): Expression {
    const { budget } = this.builder;
    let texts = automatonOf(ANY_TEXT, budget);
    for (const each of excluded)
      texts = without(texts, automatonOf(sequence(ANY_TEXT, literal(each), ANY_TEXT), budget), budget);
    if (notFirst !== "") {
      const escaped = Array.from(notFirst, (char) => `\\${char}`).join("");
      texts = without(texts, textsMatched(`\\s*[${escaped}][\\s\\S]*`, budget), budget);
    }
    return this.builder.automaton(texts, "free", { end: then });
  }

  #arguments({ schema, param, strict, members }: ArgumentsShape): Expression {
    const express = (given: unknown) =>
      members
        ? membersExpression(this.builder, given, { param }, members)
        : schemaExpression(this.builder, given, { param });
    try {
      return express(JSON.parse(schema));
    } catch (error) {
      if (strict || !(error instanceof SchemaError)) throw error;
      return express(ANY_OBJECT);
    }
  }
}
