import { beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import Ajv2020 from "ajv/dist/2020";
import { Glob } from "bun";
import { SchemaError } from "../../../src/base/errors.ts";
import { isJsonObject, type JsonObject } from "../../../src/base/json-object.ts";
import { schemaGrammar } from "../../../src/grammar/schema-grammar.ts";
import { Dice, GrammarWalker } from "./walker.ts";

setDefaultTimeout(300_000);

const folderOf = (name: string) => dirname(fileURLToPath(import.meta.resolve(`${name}/package.json`)));

/** The parts of Biome's configuration, but for those of each rule: schemas of their own, by name. */
const PART = /^(?!No[A-Z]|Use[A-Z]).*Configuration$/;

/** Schemas that packages of everyday use ship, by name. */
async function publicSchemas(): Promise<ReadonlyMap<string, JsonObject>> {
  const schemas = new Map<string, JsonObject>();
  const read = async (name: string, path: string) => {
    const schema: unknown = await Bun.file(path).json();
    if (!isJsonObject(schema)) throw new Error(`${path} is no schema`);
    schemas.set(name, schema);
    return schema;
  };
  const ajv = `${folderOf("ajv")}/dist/refs`;
  for (const file of [...new Glob("**/*.json").scanSync(ajv)].sort()) await read(file, `${ajv}/${file}`);
  const biome = folderOf("@biomejs/biome");
  await read("biome manifest", `${biome}/manifest_schema.json`);
  const { $defs } = await read("biome", `${biome}/configuration_schema.json`);
  for (const name of Object.keys($defs as object).filter((name) => PART.test(name)))
    schemas.set(name, { $ref: `#/$defs/${name}`, $defs });
  return schemas;
}

/** The keywords that schemas are refused for. All others are accepted. */
const REFUSED: Readonly<Record<string, string>> = {
  "data.json": "format",
  "json-schema-draft-06.json": "format",
  "json-schema-draft-07.json": "format",
  "json-schema-secure.json": "dependencies",
  biome: "allowTrailingCommas",
  CssConfiguration: "uniqueItems",
  JsConfiguration: "uniqueItems",
  LinterConfiguration: "uniqueItems",
  OverrideLinterConfiguration: "uniqueItems",
};

function refusal(name: string): string | undefined {
  if (name.startsWith("json-schema-2019-09/")) return "$recursiveAnchor";
  if (name.startsWith("json-schema-2020-12/")) return "$dynamicAnchor";
  return REFUSED[name];
}

let schemas: ReadonlyMap<string, JsonObject>;
beforeAll(async () => {
  schemas = await publicSchemas();
});

test("schemas that packages ship are accepted, or refused by the name of the keyword", async () => {
  expect(schemas.size).toBeGreaterThanOrEqual(40);
  const walker = await GrammarWalker.create();
  const ajv = new Ajv2020({ strict: false, validateSchema: false, validateFormats: false });
  let numAccepted = 0;
  for (const [name, schema] of schemas) {
    let grammar: string | undefined;
    let refused: string | undefined;
    try {
      grammar = schemaGrammar(schema, { param: "json" });
    } catch (error) {
      if (!(error instanceof SchemaError)) throw new Error(name, { cause: error });
      refused = error.keyword;
    }
    expect([name, refused]).toEqual([name, refusal(name)]);
    if (grammar === undefined) continue;
    numAccepted++;
    const isValid = ajv.compile(schema);
    for (const text of await walker.texts(grammar, 2, new Dice(numAccepted)))
      if (!isValid(JSON.parse(text))) throw new Error(`${name}: ${text}`);
  }
  expect(numAccepted).toBeGreaterThanOrEqual(30);
});
