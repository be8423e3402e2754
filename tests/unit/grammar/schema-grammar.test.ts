import { beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import Ajv from "ajv/dist/2020";
import addFormats from "ajv-formats";
import { InvalidRequestError } from "../../../src/base/errors.ts";
import { schemaGrammar } from "../../../src/grammar/schema-grammar.ts";
import { randomDocument } from "./random-schema.ts";
import { Dice, GrammarWalker } from "./walker.ts";

setDefaultTimeout(300_000);

let walker: GrammarWalker;
beforeAll(async () => {
  walker = await GrammarWalker.create();
});

const ajv = new Ajv({ strict: false, validateFormats: true });
addFormats(ajv);

const convert = (schema: unknown) => schemaGrammar(schema, { param: "json" });

test("whatever the grammar of a random schema allows is valid under it", async () => {
  const dice = new Dice(7);
  let [checked, refused] = [0, 0];
  const SEEDS = Number(process.env["OCTAVO_GRAMMAR_SEEDS"] ?? 150);
  for (let i = 0; i < SEEDS; i++) {
    const schema = randomDocument(dice);
    const validate = ajv.compile(schema);
    let grammar: string;
    try {
      grammar = convert(schema);
    } catch (error) {
      if (!(error instanceof InvalidRequestError)) throw error;
      refused++;
      continue;
    }
    for (const text of await walker.texts(grammar, 8, dice)) {
      let value: unknown;
      try {
        value = JSON.parse(text);
      } catch {
        throw new Error(`not JSON: ${text} under ${JSON.stringify(schema)}`);
      }
      if (!validate(value))
        throw new Error(`${text} under ${JSON.stringify(schema)}: ${JSON.stringify(validate.errors)}`);
      checked++;
    }
  }
  if (process.env["OCTAVO_GRAMMAR_SEEDS"]) console.log({ checked, refused });
  expect(checked).toBeGreaterThan(3 * SEEDS);
  expect(refused).toBeLessThan(0.3 * SEEDS);
});
