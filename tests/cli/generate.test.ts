import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { temporaryFolder } from "../support.ts";
import { generate, MODEL, start } from "./support.ts";

setDefaultTimeout(300_000);

const GREEDY = ["--temperature", "0"];
const SHORT = [...GREEDY, "--max-tokens", "12"];
const STORY = "Once upon a time, there was a little girl named Lily. She loved to";
const DOG = "The dog was very happy and thanked the cat";

/** Runs and parses `--json`. */
async function json(...args: readonly string[]) {
  const { code, stdout, stderr } = await generate(["--json", ...args]);
  expect([code, stderr]).toEqual([0, ""]);
  return JSON.parse(stdout);
}

describe("text", () => {
  test("without arguments, a story that begins with the prompt; the summary goes to standard error", async () => {
    const { code, stdout, stderr } = await generate([]);
    expect(code).toBe(0);
    expect(stdout).toStartWith("Once upon a time");
    expect(stdout.length).toBeGreaterThan(100);
    expect(stdout).toEndWith("\n");
    expect(stderr).toMatch(/^\n\d+ tokens in [\d.]+ s, [\d.]+ tokens\/s \(tiny-stories on cpu\)\n$/);
  });

  test("a prompt and a model, greedy", async () => {
    const { code, stdout } = await generate(["Once upon a time", "--model", MODEL, ...SHORT]);
    expect([code, stdout]).toEqual([0, `${STORY}\n`]);
  });

  test("underscores serve for hyphens in flags, not in prompts", async () => {
    const { stdout } = await generate([
      "--max_tokens=3",
      "--max_model_len",
      "32",
      "--temperature",
      "0",
      "--",
      "--a_b",
    ]);
    expect(stdout).toStartWith("--a_b");
    expect((await json("--max_tokens", "3")).outputTokens).toBe(3);
  });

  test("several prompts are printed in order", async () => {
    const { code, stdout } = await generate(["Once upon a time", "The dog", ...SHORT]);
    expect(code).toBe(0);
    const [first, second] = stdout.split("\n\n");
    expect(first).toBe(STORY);
    expect(second).toStartWith("The dog ");
  });

  test("--chat shows the reply alone, --stop ends it", async () => {
    const { code, stdout } = await generate(["--chat", "--system", "You tell stories", "A cat", ...SHORT]);
    expect(code).toBe(0);
    expect(stdout).not.toContain("A cat");
    const stopped = await generate([...SHORT, "--stop", "zebra", "--stop", "girl"]);
    expect(stopped.stdout).toBe("Once upon a time, there was a little \n");
  });

  test("--seed makes a text reproducible", async () => {
    const texts = [];
    for (const seed of ["7", "7", "8"])
      texts.push((await generate(["--seed", seed, "--max-tokens", "8"])).stdout);
    expect(texts[1]).toBe(texts[0]!);
    expect(texts[2]).not.toBe(texts[0]!);
  });
});

test("nothing is printed before the parameters and the prompt are checked", async () => {
  for (const args of [
    ["--temperature", "9"],
    ["--max-model-len", "3"],
  ]) {
    const { code, stdout } = await generate([...args, "Once upon a time there was"]);
    expect([code, stdout]).toEqual([64, ""]);
  }
});

test("flags of vLLM that change nothing are told on standard error", async () => {
  const { code, stdout, stderr } = await generate([...SHORT, "--trust-remote-code", "--swap-space", "4"]);
  expect([code, stdout]).toEqual([0, `${STORY}\n`]);
  expect(stderr).toStartWith(
    "octavo: --trust-remote-code has no effect: no code from a model folder is run\n",
  );
  expect(stderr).toContain("octavo: --swap-space has no effect: ");
});

describe("standard input", () => {
  test("is the prompt when text is piped in, without its last line break", async () => {
    const { code, stdout } = await generate(SHORT, `${DOG}\n`);
    expect([code, stdout]).toEqual([0, expect.stringMatching(new RegExp(`^${DOG}\\S* `))]);
    const lines = await generate(["--json", "--max-tokens", "1"], "One line\nand another\n\n");
    expect(JSON.parse(lines.stdout).results[0].prompt).toBe("One line\nand another");
  });

  test("without text, or beside prompts, it is left alone", async () => {
    expect((await generate(SHORT, "\n")).stdout).toBe(`${STORY}\n`);
    expect((await generate([...SHORT, "Once upon a time"], "The dog")).stdout).toBe(`${STORY}\n`);
  });
});

describe("--json", () => {
  test("holds texts, token ids and timings", async () => {
    const document = await json("Once upon a time", ...SHORT, "--logprobs", "1");
    expect(document).toMatchObject({ model: "tiny-stories", device: "cpu", outputTokens: 12 });
    expect(document.seconds).toBeGreaterThan(0);
    expect(document.loadSeconds).toBeGreaterThan(0);
    const [result] = document.results;
    expect(result).toMatchObject({ prompt: "Once upon a time", promptTokens: 4, cachedTokens: 0 });
    const [{ text, tokenIds, finishReason, logprobs }] = result.completions;
    expect([text, finishReason]).toEqual([STORY.slice("Once upon a time".length), "length"]);
    expect(tokenIds).toHaveLength(12);
    expect(logprobs[0]["11"]).toMatchObject({ rank: 1, decodedToken: "," });
  });

  test("--n gives several completions", async () => {
    const { results } = await json("--n", "3", "--seed", "3", "--max-tokens", "10");
    expect(results[0].completions.map(({ index }: { index: number }) => index)).toEqual([0, 1, 2]);
    expect(new Set(results[0].completions.map(({ text }: { text: string }) => text)).size).toBe(3);
  });

  test("a document longer than a pipe's buffer arrives whole", async () => {
    const document = await json("--max-tokens", "300", "--ignore-eos", "--seed", "1", "--logprobs", "20");
    expect(document.results[0].completions[0].logprobs).toHaveLength(300);
  });
});

describe("--file", () => {
  const TEXT = `Once upon a time\n\n${DOG}\r\n  \n`;

  test("takes a prompt a line, without empty ones", async () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("prompts.txt"), TEXT);
    const { results } = await json("--file", folder.file("prompts.txt"), "--max-tokens", "2");
    expect(results.map(({ prompt }: { prompt: string }) => prompt)).toEqual(["Once upon a time", DOG]);
  });

  test("- is standard input", async () => {
    const { code, stdout } = await generate(["--file", "-", "--json", "--max-tokens", "2"], TEXT);
    expect(code).toBe(0);
    expect(JSON.parse(stdout).results).toHaveLength(2);
  });
});

test("--help ends with 0 and names the flags of every group", async () => {
  const { code, stdout, stderr } = await generate(["--help"]);
  expect([code, stderr]).toEqual([0, ""]);
  for (const part of ["Usage: generate.ts", "Options:", "Sampling", "Engine:"])
    expect(stdout).toContain(part);
  const flags = [
    "--model",
    "--file",
    "--chat",
    "--json",
    "--max-tokens",
    "--top-p",
    "--stop",
    "--n ",
    "--device",
  ];
  expect(stdout).toMatch(/--seed <integer> +another seed, another text;/);
  for (const flag of [...flags, "--dtype", "--max-model-len", "--block-size", "--load-format"])
    expect(stdout).toContain(flag);
});

test("a reader that goes away ends it quietly", async () => {
  const child = start(["--max-tokens", "900", "--ignore-eos"]);
  const reader = child.stdout.getReader();
  await reader.read();
  await reader.cancel();
  expect([await child.exited, await new Response(child.stderr).text()]).toEqual([0, ""]);
});

test("an interrupt ends the text early, with exit code 130", async () => {
  const child = start(["--max-tokens", "900", "--ignore-eos"]);
  const reader = child.stdout.getReader();
  await reader.read();
  child.kill("SIGINT");
  expect(await child.exited).toBe(130);
  await reader.cancel();
});
