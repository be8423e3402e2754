import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "../../../src/base/errors.ts";
import { DEEPSEEK_V3, DEEPSEEK_V31 } from "../../../src/formats/deepseek.ts";
import type { ModelFormats } from "../../../src/formats/registry.ts";
import { formatsOf, REASONING_PARSERS, TOOL_CALL_PARSERS } from "../../../src/formats/registry.ts";
import { thrown } from "../../support.ts";

setDefaultTimeout(300_000);

const TEMPLATES = join(import.meta.dir, "../tokenizer/fixtures/templates");
const AUTO = { toolCallParser: "auto", reasoningParser: "auto" };

/** The first marker of calls, and the reasoning's. */
function markers({ withCalls, reasoning }: ModelFormats): string {
  const format = withCalls?.states["content"]?.on ?? {};
  const starts = Object.keys({ ...withCalls?.states[withCalls.start]?.on, ...format });
  const thinking = typeof reasoning === "object" ? reasoning.open : (reasoning ?? "-");
  return `${withCalls ? starts.join(" ") : "-"} | ${thinking}`;
}

describe("the forms that a chat template names", () => {
  const hermes = "<tool_call>";
  const coder = "<tool_call> <function=";
  const deepseek = "<｜tool▁calls▁begin｜>";
  const expected: Readonly<Record<string, string>> = {
    qwen3: `${hermes} <think> </think> | <think>`,
    qwen3_training: `${hermes} <think> </think> | <think>`,
    qwen2_5: `${hermes} | -`,
    qwen3_instruct_2507: `${hermes} | -`,
    qwen3_vl: `${hermes} | -`,
    falcon_h1: `${hermes} | -`,
    exaone4: `${hermes} <think> </think> | <think>`,
    qwen3_8: `${coder} <think> </think> | <think>`,
    nemotron_3_nano: `${coder} <think> </think> | <think>`,
    // Calls of a form that is not known.
    glm4moe: "- | <think>",
    glm4moe_training: "- | <think>",
    lfm2_2_5_v2: "- | <think>",
    phi_4: "- | <think>",
    llama3_1: "<|python_tag|> { | -",
    llama3_2: "<|python_tag|> { | -",
    llama4: "<|python_tag|> { | -",
    mistral_v2v3: "[TOOL_CALLS] | -",
    mistral_v3_tekken: "[TOOL_CALLS] | -",
    deepseek_v3: `${deepseek} <think> </think> | <think>`,
    deepseekv3: `${deepseek} <think> </think> | <think>`,
    deepseek_r1_distill: `${deepseek} <think> </think> | <think>`,
    gemma4_v5: "<|tool_call> <|channel> <channel|> | <|channel>",
    gptoss: "<|start|> <|channel|> <|end|> <|return|> <|call|> | harmony",
  };
  const files = readdirSync(TEMPLATES).filter((name) => name.endsWith(".jinja"));
  test.each(files)("%s", (file) => {
    const name = file.replace(".jinja", "");
    const formats = formatsOf(AUTO, readFileSync(join(TEMPLATES, file), "utf8"));
    const simple = (text: string) => [...new Set(text.split(" "))].sort().join(" ");
    expect(simple(markers(formats))).toBe(simple(expected[name] ?? "- | -"));
  });

  test("DeepSeek's two forms are told apart", () => {
    const block = "<｜tool▁calls▁begin｜>";
    expect(formatsOf(AUTO, `${block} \`\`\`json`).withCalls).toBe(DEEPSEEK_V3);
    expect(formatsOf(AUTO, block).withCalls).toBe(DEEPSEEK_V31);
  });

  test("without a template there are none", () => {
    const { withCalls, reasoning } = formatsOf(AUTO, undefined);
    expect([withCalls, reasoning]).toEqual([undefined, undefined]);
  });
});

describe("the forms that options name", () => {
  test("win over the template", () => {
    const template = readFileSync(join(TEMPLATES, "qwen3.jinja"), "utf8");
    const formats = formatsOf({ toolCallParser: "mistral", reasoningParser: "none" }, template);
    expect(markers(formats)).toBe("[TOOL_CALLS] | -");
  });

  test("all of the list exist", () => {
    for (const toolCallParser of TOOL_CALL_PARSERS)
      formatsOf({ toolCallParser, reasoningParser: "none" }, "");
    for (const reasoningParser of REASONING_PARSERS)
      formatsOf({ toolCallParser: "none", reasoningParser }, "");
  });

  test.each([
    ["toolCallParser", "constructor", "none"],
    ["toolCallParser", "qwen", "none"],
    ["reasoningParser", "none", "toString"],
    ["reasoningParser", "harmony", "qwen3"],
    ["reasoningParser", "hermes", "harmony"],
  ])("%s is refused: %s with %s", (param, toolCallParser, reasoningParser) => {
    const error = thrown(() => formatsOf({ toolCallParser, reasoningParser }, undefined));
    expect(error).toBeInstanceOf(ConfigError);
    expect(error).toMatchObject({ option: param });
  });
});
