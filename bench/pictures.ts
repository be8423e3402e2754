/**
 * The pictures of docs/book/, made of what an engine did with the embedded model and of records in bench/results/.
 *
 *   bun run build:pictures       writes docs/book/*.svg; a test holds them to this
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { blockOf } from "../src/base/engine-view.ts";
import {
  type Arrival,
  type RecordedStep,
  recordEngine,
  recordOdds,
  recordPrefixes,
  TOKEN_BYTES,
} from "./recordings.ts";
import { type Bar, drawBars, Picture } from "./svg.ts";

const ROOT = join(import.meta.dir, "..");
export const BOOK = join(ROOT, "docs/book");
const BLOCK_SIZE = 16;

/** A record of bench/results/, with as much of its form as is read here. */
// biome-ignore lint/suspicious/noExplicitAny: records have forms of their own, and a picture of a wrong one is seen.
function results(name: string): any {
  return JSON.parse(readFileSync(join(ROOT, "bench/results", `${name}.json`), "utf8")).results;
}

/** All pictures by the names of their files. */
export async function makePictures(): Promise<ReadonlyMap<string, string>> {
  const pictures = {
    blocks: await blocks(),
    batch: await batch(),
    "prefix-cache": await prefixCache(),
    "paged-attention": pagedAttention(),
    sampling: await sampling(),
    graph: graph(),
    overlap: overlap(),
    "tensor-parallel": tensorParallel(),
    quantisation: quantisation(),
    serving: serving(),
  };
  return new Map(Object.entries(pictures).map(([name, picture]) => [`${name}.svg`, String(picture)]));
}

const STORY =
  "Once upon a time, there was a little girl named Lily. She loved to play in the park with her dog.";

/** Three sequences' block tables, and the pool that they are in. */
async function blocks(): Promise<Picture> {
  const arrivals: readonly Arrival[] = [
    { step: 0, prompt: STORY, maxTokens: 60 },
    { step: 0, prompt: `${STORY} One day a bird`, maxTokens: 40 },
    { step: 0, prompt: "Tom had a red ball.", maxTokens: 60 },
    { step: 6, prompt: "The cat was sad, and the moon", maxTokens: 60 },
  ];
  const numBlocks = 24;
  const steps = await recordEngine(arrivals, { kvCacheMemoryBytes: numBlocks * BLOCK_SIZE * TOKEN_BYTES });
  // The first step after the second sequence has ended.
  const { view, running } = steps.find((step) => step.running.length === 3 && step.view.stats.steps > 30)!;
  const picture = new Picture(
    "Block tables and the pool",
    "Three sequences, the blocks that each holds, and the pool with those of a finished sequence still cached",
  );
  const states = [...view.blocks].map(blockOf);
  const [cell, step] = [32, 36];
  for (const [i, { sequence, slot, tokens }] of running.entries()) {
    picture.text(picture.left, picture.y + 20, `sequence ${sequence}, ${tokens} tokens`);
    const table = states.flatMap((state, block) => (state.slot === slot ? [block] : []));
    for (const [place, block] of table.entries()) {
      const x = picture.left + 180 + place * step;
      const filled = Math.min(BLOCK_SIZE, tokens - place * BLOCK_SIZE) / BLOCK_SIZE;
      picture.rect(x, picture.y, cell, cell - 4, "cell");
      picture.rect(x, picture.y, cell * filled, cell - 4, `s${2 * i}`);
      picture.text(x + cell / 2, picture.y + 19, String(block), {
        anchor: "middle",
        is: i === 2 ? "dark" : "on",
      });
    }
    picture.y += step;
  }
  picture.y += 12;
  picture.text(picture.left, picture.y + 10, `the pool, ${numBlocks} blocks of ${BLOCK_SIZE} tokens`);
  picture.y += 22;
  const columns = numBlocks / 2;
  for (const [block, { slot, isCached }] of states.entries()) {
    const owner = running.findIndex((sequence) => sequence.slot === slot);
    const x = picture.left + (block % columns) * 56;
    const y = picture.y + Math.floor(block / columns) * step;
    const free = isCached ? "s1" : "cell";
    picture.rect(x, y, 52, cell, owner < 0 ? free : `s${2 * owner}`);
    const is = owner < 0 ? (isCached ? "dark" : "faint") : owner === 2 ? "dark" : "on";
    picture.text(x + 26, y + 21, String(block), { anchor: "middle", is });
  }
  picture.y += 2 * step + 6;
  const owners = running.map(({ sequence }, i) => [`s${2 * i}`, `sequence ${sequence}`] as const);
  picture.legend([...owners, ["s1", "free, contents cached"], ["cell", "free"]]);
  return picture;
}

/** Steps from left to right, sequences from top to bottom: the tokens that each step computes. */
async function batch(): Promise<Picture> {
  const prompts = [
    STORY,
    "Tom had a red ball.",
    `${STORY} One day a bird came`,
    "The sun was hot.",
    "A frog",
  ];
  const arrivals = prompts.map((prompt, i) => ({ step: [0, 0, 3, 5, 8][i]!, prompt, maxTokens: 16 }));
  const options = {
    ...{ maxNumBatchedTokens: 16, maxNumSeqs: 4, enablePrefixCaching: false },
    kvCacheMemoryBytes: 7 * BLOCK_SIZE * TOKEN_BYTES,
  };
  const steps = await recordEngine(arrivals, options);
  const picture = new Picture(
    "The batch, step by step",
    "Each column is a step of at most 16 tokens: decodes first, then pieces of prompts; a sequence is preempted for want of blocks",
  );
  const start = picture.left + 100;
  const width = (picture.right - start) / steps.length;
  for (const sequence of arrivals.keys()) {
    picture.text(picture.left, picture.y + 17, `sequence ${sequence}`);
    for (const i of steps.keys()) {
      const [is, tokens] = cellOf(steps, i, sequence);
      if (is === undefined) continue;
      const x = start + i * width;
      picture.rect(x, picture.y, width - 1.5, 24, is);
      if (is === "s1")
        picture.text(x + width / 2 - 0.7, picture.y + 16, String(tokens), {
          anchor: "middle",
          is: "small dark",
        });
    }
    picture.y += 28;
  }
  picture.text(start, picture.y + 12, `${steps.length} steps`, { is: "small faint" });
  picture.y += 22;
  picture.legend([
    ["s1", "tokens of a prompt, how many"],
    ["s0", "the next token"],
    ["cell", "waits"],
    ["s5", "waits, preempted"],
  ]);
  return picture;
}

/** The fill of a sequence's cell in a step, and the tokens that the step computed of it. */
function cellOf(
  steps: readonly RecordedStep[],
  index: number,
  sequence: number,
): readonly [is: string | undefined, tokens: number] {
  const find = (at: number) => steps[at]?.running.find((one) => one.sequence === sequence);
  const waits = steps[index]!.waiting.find((one) => one.sequence === sequence);
  if (waits !== undefined) return [waits.preempted === 1 ? "s5" : "cell", 0];
  const [before, now] = [find(index - 1), find(index)];
  if (now === undefined) return before === undefined ? [undefined, 0] : ["s0", 1];
  const tokens = now.computedTokens - (before?.computedTokens ?? 0);
  if (tokens === 0) return ["cell", 0];
  return [tokens > 1 || now.computedTokens <= now.promptTokens ? "s1" : "s0", tokens];
}

async function prefixCache(): Promise<Picture> {
  const rules = `${STORY} One day they saw a big red bird in a tall tree. The bird could not fly. Lily wanted to help it.`;
  const questions = [
    "She asked her mom",
    "Her dog ran to the tree",
    "The bird said thank you",
    "She asked her mom",
  ];
  const rows = await recordPrefixes(questions.map((question) => `${rules} ${question}`));
  const picture = new Picture(
    "Four prompts that begin alike",
    "Tokens of each prompt that were found in the cache, and those that were computed",
  );
  const bars = rows.map(({ tokens, cached }, i): Bar => {
    const value = `${cached} of ${tokens} found`;
    return { label: `“… ${questions[i]}”`, parts: [cached, tokens - cached], value };
  });
  drawBars(picture, bars);
  picture.legend([
    ["s0", "tokens from the cache"],
    ["s1", "tokens computed"],
  ]);
  return picture;
}

function pagedAttention(): Picture {
  const { times } = results("2026-11-26-h100-naive-decode");
  const picture = new Picture(
    "From the plainest kernel to the fast one",
    "Share of the rate at which an H100 reads memory, for each step and three contexts",
  );
  const versions = [...new Set<string>(times.map((time: { version: string }) => time.version))];
  const contexts = [...new Set<string>(times.map((time: { contexts: string }) => time.contexts))];
  for (const [series, context] of contexts.entries()) {
    picture.heading(`${context} tokens of context`);
    const bars = versions.map((version): Bar => {
      const time = times.find(
        (one: { version: string; contexts: string }) => one.version === version && one.contexts === context,
      );
      const share = time.limitMicroseconds / time.microseconds;
      const microseconds = Number(time.microseconds.toPrecision(3)).toLocaleString("en");
      return {
        label: version,
        parts: [share],
        mark: 1,
        value: `${percent(share)}  ${microseconds} µs`,
        series: series * 2,
      };
    });
    drawBars(picture, bars, 310);
  }
  picture.note(
    "The line is the card's read ceiling: keys and values once at 3.15 TB/s. Heads of Qwen3-0.6B, bfloat16, H100.",
  );
  return picture;
}

async function sampling(): Promise<Picture> {
  const odds = await recordOdds("Once upon a time, there was a little", 12);
  const topP = 0.9;
  const picture = new Picture(
    "“Once upon a time, there was a little …”",
    "The likeliest next tokens, their probabilities, and which of them top-p keeps",
  );
  let sum = 0;
  const bars = odds.map(({ token, probability }): Bar => {
    const kept = sum < topP;
    sum += probability;
    return {
      label: `“${token}”`,
      parts: [probability],
      value: percent(probability, 1),
      series: kept ? 0 : 1,
    };
  });
  drawBars(picture, bars, 120);
  picture.legend([
    ["s0", `kept by topP ${topP}`],
    ["s1", "cut off"],
  ]);

  return picture;
}

function graph(): Picture {
  const { decode } = results("2026-11-26-h100-qwen3-0.6b-throughput");
  const [, one] = decode;
  const picture = new Picture(
    "A decode step of one sequence",
    "The step's ops by themselves with their launches in between, the captured step, and what reading its bytes takes",
  );
  const names = ["linear", "attention", "LM head"];
  const parts = names.map(
    (name) => one.classes.find((entry: { class: string }) => entry.class === name).milliseconds,
  );
  const rest = one.opMilliseconds - parts.reduce((a: number, b: number) => a + b, 0);
  const value = (milliseconds: number) => `${milliseconds.toFixed(2)} ms`;
  drawBars(picture, [
    { label: "op by op", parts: [...parts, rest], value: value(one.opMilliseconds) },
    {
      label: "one captured graph",
      parts: [one.graphMilliseconds],
      value: value(one.graphMilliseconds),
      series: 4,
    },
    {
      label: "reading its bytes once",
      parts: [one.limitMilliseconds],
      value: value(one.limitMilliseconds),
      series: 5,
    },
  ]);
  picture.legend([
    ...names.map((name, i) => [`s${i}`, name] as const),
    ["s3", "sampling, the batch, embedding"],
  ]);
  picture.note(
    "Qwen3-0.6B, bfloat16, 689 tokens of context, H100. In the graph layers of few rows are one kernel.",
  );
  return picture;
}

function overlap(): Picture {
  const picture = new Picture(
    "Tokens a second with and without a step in flight",
    "Streams of 128 tokens, Qwen3-0.6B, one step launched while the one before runs, and one after another",
  );
  const versions = {
    "one after another, op by op": "eager",
    "one after another": "sequential",
    "one in flight": "overlapped",
  };
  const runs = results("2026-11-26-h100-overlap");
  for (const [series, [i, streams]] of [[0, "one stream"] as const, [1, "64 streams"] as const].entries()) {
    picture.heading(streams);
    const bars = Object.entries(versions).map(([label, run]): Bar => {
      const { tokensPerSecond } = runs[run][i];
      return {
        label,
        parts: [tokensPerSecond],
        value: `${Math.round(tokensPerSecond).toLocaleString("en")} tokens/s`,
        series,
      };
    });
    drawBars(picture, bars);
  }
  return picture;
}

function tensorParallel(): Picture {
  const { rows } = results("2026-11-26-2xh200-parallel");
  const picture = new Picture(
    "One model on two GPUs",
    "Tokens a second of an 8B model on one GPU, on two ranks, and on two replicas",
  );
  for (const [i, workload] of ["1x32+128", "nano-vllm"].entries()) {
    picture.heading(workload === "nano-vllm" ? "256 requests" : "one stream");
    const some = rows.filter(
      (row: { workload: string; name: string }) => row.workload === workload && row.name === "8B",
    );
    drawBars(
      picture,
      some.map((row: { ranks: number; replicas: number; tokensPerSecond: number; times?: number }): Bar => {
        const { ranks, replicas, tokensPerSecond, times } = row;
        const label = ranks > 1 ? `${ranks} ranks` : replicas > 1 ? `${replicas} replicas` : "one GPU";
        const factor = times === undefined ? "" : `, ${times.toFixed(2)} ×`;
        return {
          label,
          parts: [tokensPerSecond],
          value: `${Math.round(tokensPerSecond).toLocaleString("en")} /s${factor}`,
          series: i,
        };
      }),
      150,
    );
  }
  picture.note("Qwen3-8B's shapes, bfloat16, two H200s of one machine.");
  return picture;
}

function quantisation(): Picture {
  const table = readFileSync(join(ROOT, "docs/quantisation.md"), "utf8");
  const rows = [...table.matchAll(/^\| ([^|]+?) +\| +(\d+\.\d+) \| +(−?[\d.]*)%? \|$/gm)];
  const picture = new Picture(
    "What each form of weights costs",
    "Perplexity of the embedded model with its weights in each form, more than as it is, in percent",
  );
  drawBars(
    picture,
    rows.slice(1).map(([, form, , more]): Bar => {
      const value = Number(more!.replace("−", "-"));
      return { label: form!.replaceAll("`", ""), parts: [Math.max(0, value)], value: `${more} %` };
    }),
  );
  picture.note(
    "Stories that the model was not trained on, 1,330 tokens; as it is: perplexity 20.392. Less than nothing is chance.",
  );
  return picture;
}

function serving(): Picture {
  const { served, offlineTokensPerSecond } = results("2026-11-26-h100-qwen3-0.6b-served");
  const [run] = served;
  const picture = new Picture(
    "256 requests through HTTP at once",
    "Percentiles of the time to the first token and between tokens, and the rate beside that without a server",
  );
  const bars = (name: string, series: number) => {
    const entries = ["p50", "p90", "p99"].map((percentile): Bar => {
      const value = run[name][percentile];
      return { label: percentile, parts: [value], value: `${value.toFixed(1)} ms`, series };
    });
    drawBars(picture, entries, 70);
  };
  picture.heading("to the first token");
  bars("ttft", 0);
  picture.heading("from token to token");
  bars("itl", 1);
  const rate = (value: number) => Math.round(value).toLocaleString("en");
  picture.note(
    `${rate(run.outputTokensPerSecond)} tokens/s through HTTP, ${rate(offlineTokensPerSecond)} without a server. Qwen3-0.6B, H100.`,
  );
  return picture;
}

function percent(share: number, digits = 0): string {
  return `${(100 * share).toFixed(digits)}%`;
}

if (import.meta.main)
  for (const [name, picture] of await makePictures()) writeFileSync(join(BOOK, name), picture);
