import type { ZodType } from "zod";
import { isLargerThan } from "../base/data-size.ts";
import { GrammarTooComplexError, InvalidRequestError, messageOf, SchemaError } from "../base/errors.ts";
import { isZod, type ResolvedOutputs } from "../base/structured-outputs.ts";
import { isEmpty } from "./automaton.ts";
import { Budget } from "./budget.ts";
import { anyOf, type Expression, GrammarBuilder, text, written } from "./grammar-text.ts";
import { textsMatched } from "./pattern.ts";
import { RegexSyntaxError } from "./regex-parser.ts";
import { schemaExpression } from "./schema-grammar.ts";
import { checkGrammar, withPrefix } from "./user-grammar.ts";

/** Longest schema as JSON, and longest grammar, in characters. */
const MAX_SOURCE = 256 * 1024;
const MAX_CHOICES = 1024;
const MAX_CHOICE_CHARACTERS = 64 * 1024;
/** The rules of a grammar that is given are named so, which no other rules are. */
const GIVEN = "given.";

/**
 * The same as plain data, with a schema as JSON text: it may cross threads. What is too long for that is refused before it is copied.
 * @throws SchemaError when a zod schema has no JSON Schema, or the schema is not JSON; GrammarTooComplexError
 */
export function plainOutputs(outputs: ResolvedOutputs): ResolvedOutputs {
  const { json, grammar, choice, param } = outputs;
  if (!isZod(json) && isLargerThan(MAX_SOURCE, json)) throw tooLong("the schema", param);
  if (isLargerThan(MAX_SOURCE, grammar)) throw tooLong("the grammar", param);
  if (choice && (choice.length > MAX_CHOICES || isLargerThan(MAX_CHOICE_CHARACTERS + MAX_CHOICES, choice)))
    throw tooLong("the list of choices", param);
  return json === undefined ? outputs : { ...outputs, json: schemaText(json, param) };
}

/**
 * The grammar, in EBNF with rule `root`, of what plain outputs ask for.
 * @throws SchemaError, GrammarTooComplexError; InvalidRequestError for a regular expression or grammar that is malformed.
 */
export function grammarOf(outputs: ResolvedOutputs): string {
  const builder = new GrammarBuilder(new Budget(outputs.param));
  return builder.write(outputsExpression(builder, outputs))!;
}

/** The same as a part of a larger grammar. */
export function outputsExpression(builder: GrammarBuilder, outputs: ResolvedOutputs): Expression {
  const { param, json, regex, choice, grammar } = outputs;
  const options = { param, compact: outputs.disableAnyWhitespace === true };
  if (json !== undefined) return schemaExpression(builder, parse(json as string, param), options);
  if (typeof regex === "string") return ofRegex(builder, regex, param);
  if (choice) return ofChoice(choice, param);
  if (typeof grammar === "string") {
    checkGrammar(grammar, param);
    return written(`${GIVEN}root`, withPrefix(grammar, GIVEN));
  }
  return schemaExpression(builder, { type: "object" }, options);
}

function schemaText(json: unknown, param: string): string {
  const invalid = (reason: string) => new SchemaError(param, "schema", "", reason);
  let schema = json;
  if (isZod(json)) {
    try {
      // Whoever brings such a schema has loaded the library, which takes 20 ms.
      const { toJSONSchema } = require("zod") as typeof import("zod");
      schema = toJSONSchema(json as ZodType);
    } catch (error) {
      throw invalid(messageOf(error));
    }
  }
  let written: string | undefined;
  try {
    written = typeof schema === "string" ? schema : JSON.stringify(schema);
  } catch {
    throw invalid("it is not JSON");
  }
  if (written === undefined) throw invalid("it is not JSON");
  if (written.length > MAX_SOURCE) throw tooLong("the schema", param);
  return written;
}

function parse(schema: string, param: string): unknown {
  try {
    return JSON.parse(schema);
  } catch {
    throw new SchemaError(param, "schema", "", "it is not JSON");
  }
}

function ofRegex(builder: GrammarBuilder, pattern: string, param: string): Expression {
  try {
    const texts = textsMatched(pattern, builder.budget);
    if (isEmpty(texts)) throw new RegexSyntaxError("no text matches it");
    return builder.automaton(texts, "text");
  } catch (error) {
    if (!(error instanceof RegexSyntaxError)) throw error;
    throw new InvalidRequestError(param, `the regular expression: ${error.message}`, "invalid_regex");
  }
}

function ofChoice(choices: readonly string[], param: string): Expression {
  if (choices.length === 0 || choices.some((each) => each === "" || !each.isWellFormed()))
    throw new InvalidRequestError(param, "each choice must have at least one character");
  return anyOf(...choices.map(text));
}

function tooLong(what: string, param: string): GrammarTooComplexError {
  return new GrammarTooComplexError(param, `${what} is too long`);
}
