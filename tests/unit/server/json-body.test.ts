import { expect, setDefaultTimeout, test } from "bun:test";
import { readJsonBody } from "../../../src/server/json-body.ts";

setDefaultTimeout(300_000);

const read = (body: string) =>
  readJsonBody(
    new Request("http://localhost/", {
      method: "POST",
      body,
      headers: { "content-type": "application/json" },
    }),
    2 ** 20,
  );

test("numbers that a chat template prints keep their spelling, all others are numbers", async () => {
  const schema = '{"default": 1.0, "maximum": 9007199254740993}';
  const body = await read(
    `{"temperature": 1.0, "max_tokens": 1e1, "tools": [${schema}], "seed": 18446744073709551615}`,
  );
  expect(body).toEqual({
    temperature: 1,
    max_tokens: 10,
    tools: [{ default: new Number(1), maximum: 9007199254740993n }],
    seed: 18446744073709551615n,
  });
});
