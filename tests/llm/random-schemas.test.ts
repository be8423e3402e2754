import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import Ajv from "ajv/dist/2020";
import addFormats from "ajv-formats";
import { InvalidRequestError } from "../../src/base/errors.ts";
import { schemaGrammar } from "../../src/grammar/schema-grammar.ts";
import type { LLM } from "../../src/index.ts";
import { randomDocument } from "../unit/grammar/random-schema.ts";
import { Dice } from "../unit/grammar/walker.ts";
import { createLLM, PROMPT } from "./support.ts";

setDefaultTimeout(300_000);

/** Outputs; 2,000 of them with `OCTAVO_RANDOM_OUTPUTS`. */
const NUM_OUTPUTS = Number(process.env["OCTAVO_RANDOM_OUTPUTS"] ?? 8);
const AT_ONCE = 16;
const MAX_TOKENS = 160;

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM({ maxModelLen: 256 });
});
afterAll(() => llm.dispose());

test(
  "outputs of a hot model under random schemas parse, and are valid",
  async () => {
    const ajv = new Ajv({ strict: false, validateFormats: true });
    addFormats(ajv);
    const dice = new Dice(Number(process.env["OCTAVO_GRAMMAR_SEED"] ?? 3));
    let [ended, cut] = [0, 0];
    while (ended + cut < NUM_OUTPUTS) {
      const schemas: unknown[] = [];
      while (schemas.length < Math.min(AT_ONCE, NUM_OUTPUTS)) {
        const schema = randomDocument(dice);
        if (isAccepted(schema)) schemas.push(schema);
      }
      const outputs = await llm.generate(
        schemas.map(() => PROMPT),
        schemas.map((json) => ({
          ...{
            temperature: 2,
            maxTokens: MAX_TOKENS,
            seed: dice.below(2 ** 30),
            structuredOutputs: { json },
          },
        })),
      );
      for (const [i, { outputs: completions }] of outputs.entries()) {
        const { text, finishReason } = completions[0]!;
        if (finishReason === "length") {
          cut++;
          continue;
        }
        expect(finishReason).toBe("stop");
        const validate = ajv.compile(schemas[i] as object);
        if (!validate(JSON.parse(text)))
          throw new Error(`${text} under ${JSON.stringify(schemas[i])}: ${JSON.stringify(validate.errors)}`);
        ended++;
      }
    }
    console.log(`${ended} outputs are valid, ${cut} were cut off`);
    expect(ended).toBeGreaterThan(cut);
  },
  300_000 + 2_000 * NUM_OUTPUTS,
);

function isAccepted(schema: unknown): boolean {
  try {
    schemaGrammar(schema, { param: "json" });
    return true;
  } catch (error) {
    if (error instanceof InvalidRequestError) return false;
    throw error;
  }
}
