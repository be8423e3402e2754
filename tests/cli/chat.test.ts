import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { temporaryFolder } from "../support.ts";
import { octavo, startOctavo } from "./support.ts";

setDefaultTimeout(300_000);

const GREEDY = ["chat", "--temperature", "0", "--max-tokens", "12"];

async function replies(lines: readonly string[], args: readonly string[] = GREEDY) {
  const { code, stdout, stderr } = await octavo(args, { stdin: `${lines.join("\n")}\n` });
  expect(code).toBe(0);
  return { replies: stdout.split("\n").slice(0, -1), stderr };
}

describe("one message a line", () => {
  test("each gets a reply on standard output, and a line of timing on standard error", async () => {
    const { replies: lines, stderr } = await replies(["A story about a cat", "", "And then?"]);
    expect(lines).toHaveLength(2);
    expect(lines[0]).toStartWith("Once upon a time");
    const timing = /^(12 tokens, first after [\d.]+ s, [\d.]+ tokens\/s\n){2}$/;
    expect(stderr).toMatch(timing);
    const silent = await replies(["A story about a cat"], [...GREEDY, "--no-timing"]);
    expect(silent).toEqual({ replies: [lines[0]!], stderr: "" });
  });

  test("/reset forgets what was said, /system instructs from then on", async () => {
    // The model sees only the text of the first message.
    const args = [...GREEDY, "--chat-template", "{{ messages[0].content }}"];
    const [cat, rain] = ["The cat was hungry because", "It rained and"];
    const { replies: lines } = await replies(
      [cat, rain, "/reset", rain, "/system The sun", cat, "/system", cat],
      args,
    );
    const [ofCat, ofHistory, ofRain, ofSystem, ofHistoryAgain] = lines;
    expect(lines).toHaveLength(5);
    expect(new Set([ofCat, ofRain, ofSystem]).size).toBe(3);
    expect([ofHistory, ofHistoryAgain]).toEqual([ofCat, ofRain]);
    const { replies: flagged } = await replies([cat], [...args, "--system", "The sun"]);
    expect(flagged).toEqual([ofSystem!]);
  });

  test("replies are valid under a schema, and thoughts are left out", async () => {
    using folder = temporaryFolder();
    const file = folder.file("schema.json");
    await Bun.write(
      file,
      JSON.stringify({ type: "object", properties: { a: { enum: ["x", "y"] } }, required: ["a"] }),
    );
    const args = [...GREEDY, "--no-timing", "--max-tokens", "40", "--schema", file];
    const { replies: lines } = await replies(["Once"], args);
    expect(["x", "y"]).toContain(JSON.parse(lines.join("")).a);
    // The model thinks from the first token on, and does not come to an end.
    const thinking = ["--chat-template", "{{ messages[0].content }}</think><think>\n"];
    const { replies: none, stderr } = await replies(["Once"], [...args, ...thinking]);
    expect([none, stderr]).toEqual([[""], ""]);
    const { stderr: missing } = await octavo(["chat", "--schema", folder.file("none.json")]);
    expect(missing).toContain("cannot read");
  });

  test("/exit ends it, /help lists the commands, an unknown one is named", async () => {
    const { replies: lines, stderr } = await replies(["/help", "/nonsense", "/exit", "not answered"]);
    expect(lines).toEqual([]);
    expect(stderr).toContain("/system TEXT");
    expect(stderr).toContain("/nonsense");
  });

  test("old messages make room when the context is full", async () => {
    const cats = Array.from({ length: 4 }, (_, i) => `Cat number ${i} sat on a mat`);
    const { replies: lines, stderr } = await replies(cats, [...GREEDY, "--max-model-len", "80"]);
    expect(lines).toHaveLength(4);
    expect(stderr).toMatch(/the context is full: the oldest \d+ messages were dropped/);
  });

  test("a message that cannot be answered is said and skipped", async () => {
    const { replies: lines, stderr } = await replies(
      ["word ".repeat(200), "A cat"],
      [...GREEDY, "--max-model-len", "80"],
    );
    expect(lines).toHaveLength(1);
    expect(stderr).toMatch(/^octavo: [^\n]*80/);
  });
});

test("Ctrl-C stops the reply, and the next line is answered", async () => {
  const child = startOctavo(["chat", "--ignore-eos", "--max-tokens", "900"], {
    stdin: "A cat\n/system Be brief\n",
  });
  const reader = child.stdout.getReader();
  await reader.read();
  child.kill("SIGINT");
  for (;;) if ((await reader.read()).done) break;
  const timing = (await new Response(child.stderr).text()).match(/^(\d+) tokens, first after [^\n]+\n$/);
  expect(await child.exited).toBe(0);
  expect(Number(timing![1])).toBeWithin(1, 900);
});
