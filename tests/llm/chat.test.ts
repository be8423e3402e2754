import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { type ChatMessage, LLM } from "../../src/index.ts";
import { collect, createLLM, GREEDY, only, rejection, SMALL } from "./support.ts";

setDefaultTimeout(300_000);

const ASK: readonly ChatMessage[] = [{ role: "user", content: "Tell me a story" }];
const TALK: readonly ChatMessage[] = [
  { role: "system", content: "You tell stories" },
  ...ASK,
  { role: "assistant", content: "Once upon" },
];
const RENDERED = "<|im_start|>user\nTell me a story<|im_end|>\n<|im_start|>assistant\n";

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM();
});
afterAll(() => llm.dispose());

describe("renderChat", () => {
  test("writes the conversation as the model sees it", () => {
    expect(llm.renderChat(ASK)).toBe(RENDERED);
    expect(llm.renderChat(ASK, { addGenerationPrompt: false })).toBe(
      RENDERED.replace(/<.im_start.>assistant\n$/, ""),
    );
    expect(llm.renderChat(TALK, { continueFinalMessage: true })).toEndWith(
      "<|im_start|>assistant\nOnce upon",
    );
  });

  test("refuses what it cannot render", () => {
    expect(() => llm.renderChat([])).toThrow("no messages");
    expect(() => llm.renderChat([{ role: "user", content: [{ type: "image_url" }] as never }])).toThrow(
      "content",
    );
    const both = { continueFinalMessage: true, addGenerationPrompt: true };
    expect(() => llm.renderChat(TALK, both)).toThrow("exclude each other");
  });
});

describe("chat", () => {
  test("continues the rendered conversation, special tokens as tokens", async () => {
    const [output] = await llm.chat(ASK, GREEDY);
    expect(output!.prompt).toBe(RENDERED);
    expect(output!.promptTokenIds[0]).toBe(llm.tokenizer!.tokenToId("<|im_start|>")!);
    expect(only([output!])).toEqual(only(await llm.generate(RENDERED, GREEDY)));
  });

  test("several conversations come back in order", async () => {
    const outputs = await llm.chat([TALK, ASK], GREEDY, { chatTemplateKwargs: { enable_thinking: false } });
    expect(outputs.map(({ prompt }) => prompt)).toEqual([llm.renderChat(TALK), RENDERED]);
    expect(only([outputs[1]!])).toEqual(only(await llm.chat(ASK, GREEDY)));
  });

  test("without maxTokens a reply may fill the context, even when it is there as undefined", async () => {
    await using small = await createLLM({ maxModelLen: 64 });
    for (const maxTokens of [{}, { maxTokens: null }, { maxTokens: undefined }] as object[]) {
      const [output] = await small.chat(ASK, { temperature: 0, ignoreEos: true, ...maxTokens });
      expect(output!.promptTokenIds.length + output!.outputs[0]!.tokenIds.length).toBe(64);
    }
  });

  test("streamChat gives the same text in pieces", async () => {
    const deltas = await collect(llm.streamChat(TALK, GREEDY, { continueFinalMessage: true }));
    const whole = only(await llm.chat(TALK, GREEDY, { continueFinalMessage: true }));
    expect(deltas.map(({ text }) => text).join("")).toBe(whole.text);
    expect(whole.text).toStartWith(" a time");
  });

  test("no messages are refused", async () => {
    expect(await rejection(llm.chat([]))).toMatchObject({ param: "messages", code: "empty_prompt" });
    expect(await rejection(llm.chat([ASK, []]))).toMatchObject({ param: "messages" });
  });
});

test("a template given as an option replaces the model's", async () => {
  const chatTemplate = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}";
  await using other = await LLM.create(undefined, { ...SMALL, chatTemplate });
  expect(other.renderChat(ASK)).toBe("[user] Tell me a story\n");
});
