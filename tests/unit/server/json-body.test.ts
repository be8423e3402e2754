import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { parseJsonBody } from "../../../src/server/body/json-body.ts";
import { thrown } from "../../support.ts";

setDefaultTimeout(300_000);

const parse = (text: string) => parseJsonBody(new TextEncoder().encode(text));
const refusal = (text: string) => thrown(() => parse(text)) as { code: string; param: string | null };

test("numbers that a chat template prints keep their spelling, all others are numbers", () => {
  const schema = '{"default": 1.0, "maximum": 9007199254740993}';
  const body = parse(
    `{"temperature": 1.0, "max_tokens": 1e1, "tools": [${schema}], "seed": 18446744073709551615}`,
  );
  expect(body).toEqual({
    temperature: 1,
    max_tokens: 10,
    tools: [{ default: new Number(1), maximum: 9007199254740993n }],
    seed: 18446744073709551615n,
  });
});

describe("the seed is the document's own, as it is written", () => {
  const seed = "9007199254740993";
  test.each([
    ["among others", `{"prompt":"\\"seed\\":1","seed":${seed},"x":{"seed":1}}`],
    ["after that of another object", `{"x":[{"seed":9007199254740995}],"seed" : ${seed} }`],
    ["the last of two", `{"seed":9007199254740995,"seed":${seed}}`],
    ["with escapes in its name", `{"s\\u0065ed":${seed}}`],
    ["before a list", `{"seed":${seed},"prompt":[1,2]}`],
  ])("%s", (_, text) => {
    expect(parse(text)).toMatchObject({ seed: BigInt(seed) });
  });

  test("or a number, where it is no integer", () => {
    expect(parse('{"seed":1e300}')).toEqual({ seed: 1e300 });
    expect(parse(`{"seed":${"9".repeat(300)}}`)).toEqual({ seed: Number("9".repeat(300)) });
  });
});

describe("the parts of a body are bounded before it is parsed", () => {
  const many = (item: string, count = 40_000) => `[${new Array(count).fill(item).join()}]`;

  test.each([
    ["texts", `{"stop":${many('"a"')}}`, "stop"],
    ["texts with brackets and commas", `{"stop":${many('"],[,{\\""')}}`, "stop"],
    ["nulls", `{"bad_words":${many("null")}}`, "bad_words"],
    ["lists", `{"messages":${many("[]")}}`, "messages"],
    ["objects", `{"messages":${many(" {}")}}`, "messages"],
    ["objects with fields", `{"messages":${many('{"a":1}', 20_000)}}`, "messages"],
    ["numbers that a template prints", `{"tools":${many("1.0")}}`, "tools"],
    ["the same, with blanks and an escaped name", `{"docum\\u0065nts":${many(" 1.0\n")}}`, "documents"],
    ["fields of one object", `{"logit_bias":{${new Array(40_000).fill('"1":1').join()}}}`, "logit_bias"],
  ])("%s name their field", (_, text, param) => {
    expect(refusal(text)).toMatchObject({ code: "invalid_value", param });
  });

  test("fields of the document name none", () => {
    expect(refusal(`{${new Array(40_000).fill('"a":1').join()}}`)).toMatchObject({
      ...{ code: "invalid_json", param: null },
    });
  });

  test("token ids are not parts", () => {
    const prompt = `[${many("5")},${many(" -1 ")}]`;
    expect((parse(`{"prompt":${prompt}}`)["prompt"] as unknown[][]).map(({ length }) => length)).toEqual([
      ...[40_000, 40_000],
    ]);
  });

  test("brackets and commas in texts are not parts", () => {
    const prompt = "[{,:".repeat(40_000);
    expect(parse(JSON.stringify({ prompt }))).toEqual({ prompt });
  });

  test.each(["{", "}", "]]", '{"a"', '{"a":"\\', '{"a', ":", ",", '{"\\u00":1}', "", "[1,2]", "1", "\u0000"])(
    "%j is no body",
    (text) => {
      expect(refusal(text)).toMatchObject({ code: "invalid_json" });
    },
  );
});
