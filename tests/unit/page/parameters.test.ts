import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  DEFAULT_SETTINGS,
  NOT_OFFERED,
  PARAMETER_GROUPS,
  ParameterError,
  requestJson,
} from "../../../src/page/chat/parameters.ts";
import { ChatBody, parseChat } from "../../../src/server/schemas/chat.ts";

setDefaultTimeout(300_000);

const offered = PARAMETER_GROUPS.flatMap(({ parameters }) => parameters.map(({ name }) => name));
const messages = [{ role: "user", content: "Hi" }];
const request = (values: Readonly<Record<string, string>>, more = {}) =>
  requestJson({ ...DEFAULT_SETTINGS, alternatives: 0, values, ...more }, messages);

describe("the parameters that the page offers", () => {
  test("are all that a chat takes, but for those that it says why not", () => {
    const fields = Object.keys(ChatBody.shape).sort();
    expect([...offered, ...Object.keys(NOT_OFFERED)].sort()).toEqual(fields);
  });

  test("make requests that the server takes", () => {
    const values = {
      ...{ temperature: "0.5", top_k: "20", seed: "18446744073709551615", stop: "END\n\nSTOP" },
      ...{ ignore_eos: "true", logit_bias: '{ "5": -100 }', reasoning_effort: "low", cache_salt: "mine" },
    };
    const json = request(values, { alternatives: 5, model: "tiny" });
    expect(json).toContain('"seed":18446744073709551615');
    const unknown: string[] = [];
    const { body, sampling } = parseChat(JSON.parse(json), (names) => unknown.push(...names));
    expect(unknown).toEqual([]);
    expect(body).toMatchObject({ model: "tiny", stream: true, cache_salt: "mine" });
    expect(sampling).toMatchObject({ temperature: 0.5, topK: 20, stop: ["END", "STOP"], logprobs: 5 });
  });

  test("that are left empty are left out; thoughts that are left out come without probabilities", () => {
    expect(JSON.parse(request({ temperature: " " }))).toEqual({
      ...{ messages, stream: true, stream_options: { include_usage: true } },
    });
    expect(request({ include_reasoning: "false" }, { alternatives: 5 })).not.toContain("logprobs");
  });

  test("that are mistyped are refused by their label", () => {
    for (const [name, value] of [
      ["temperature", "warm"],
      ["top_k", "1.5"],
      ["tools", "[{"],
    ] as const)
      expect(() => request({ [name]: value })).toThrow(ParameterError);
    expect(() => request({ top_k: "x" })).toThrow("Top k: must be an integer");
  });
});
