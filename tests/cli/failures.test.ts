import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { temporaryFolder } from "../support.ts";
import { expectRefusal, generate, MODEL, modelCopy, octavo, tensorRange } from "./support.ts";

setDefaultTimeout(300_000);

describe("64: the command line is wrong", () => {
  const cases: readonly (readonly [string, readonly string[], string])[] = [
    ["an unknown flag", ["--no-such-flag"], "--no-such-flag"],
    ["a flag without its value", ["--max-tokens"], "--max-tokens"],
    ["a number that is none", ["--temperature", "warm"], "warm"],
    ["a fraction for an integer", ["--max-tokens", "1.5"], "1.5"],
    ["a seed that is no integer", ["--seed", "0x10"], "0x10"],
    ["sampling out of range", ["--top-p", "1.5"], "--top-p must be"],
    [
      "two that contradict",
      ["--min-tokens", "9", "--max-tokens", "3"],
      "--min-tokens 9 is above --max-tokens 3",
    ],
    ["a seed beyond 64 bits", ["--seed", "99999999999999999999"], "seed"],
    ["several greedy completions", ["--temperature", "0", "--n", "2"], "--n must be 1"],
    ["an engine option out of range", ["--block-size", "3"], "--block-size must be"],
    ["an unknown device", ["--device", "tpu"], "--device must be"],
    ["a context longer than the model's", ["--max-model-len", "2048"], "--max-model-len 2048 exceeds"],
    ["a dtype that the CPU lacks", ["--device", "cpu", "--dtype", "bfloat16"], "--device cuda"],
    ["a prompt longer than the context", ["--max-model-len", "8", "word ".repeat(20)], "8"],
    ["an empty prompt", [""], "empty"],
    ["prompts twice", ["--file", "x.txt", "A prompt"], "--file"],
    ["--system without --chat", ["--system", "x"], "--chat"],
    ["--logprobs without --json", ["--logprobs", "2"], "--json"],
    [
      "a chat template that is no file",
      ["--chat", "--chat-template", "no-such-file.jinja"],
      "--chat-template no-such",
    ],
    ["text without a tokenizer", ["--skip-tokenizer-init"], "leave --skip-tokenizer-init out"],
    ["ranks that do not divide the model", ["-tp", "3"], "--tensor-parallel-size 3 does not divide"],
    [
      "a KV cache that is too small",
      ["--kv-cache-memory-bytes", "1M", "--max-model-len", "1k"],
      "raise --kv-cache-memory-bytes",
    ],
  ];
  test.each([...cases])("%s", async (_, args, part) => {
    expectRefusal(await generate(args), 64, part);
  });

  test.each([
    "--enable_lora",
    "--speculative-config {}",
    "--tool-parser-plugin=x.py",
    "--reasoning_parser_plugin x.py",
    "--pipeline-parallel-size 2",
  ])("what vLLM has and Octavo lacks: %s", async (line) => {
    const flag = line.replace(/[ =].*/, "").replaceAll("_", "-");
    const named = line.endsWith(" 2") ? line : flag;
    expectRefusal(await octavo(["generate", ...line.split(" ")]), 64, `${named} is not supported yet`);
  });

  test("replicas: their number, and where there is no server", async () => {
    expectRefusal(await octavo(["serve", "-dp", "0"]), 64, "--data-parallel-size must be an integer");
    expectRefusal(await octavo(["generate", "-dp", "2"]), 64, "octavo serve has it");
  });

  test("the subcommand", async () => {
    expectRefusal(await octavo(["serf"]), 64, "serf");
    const { code, stderr } = await octavo([]);
    expect([code, stderr]).toEqual([64, expect.stringContaining("Commands:")]);
  });

  test("the configuration file", async () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("octavo.yaml"), "max-modellen: 64");
    expectRefusal(
      await generate(["--config", folder.file("octavo.yaml")]),
      64,
      "octavo.yaml",
      "max-modellen",
    );
  });

  test("a switch in the configuration file that Octavo lacks", async () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("octavo.yaml"), "trust-remote-code: true\nenable-lora: true");
    const { code, stderr } = await generate(["--config", folder.file("octavo.yaml")]);
    expect([code, stderr]).toEqual([64, "octavo: --enable-lora is not supported yet\n"]);
  });

  test("a file without prompts", async () => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("empty.txt"), "\n \n");
    expectRefusal(await generate(["--file", folder.file("empty.txt")]), 64, "empty.txt");
  });
});

describe("66: something is missing", () => {
  test("the model folder", async () => {
    expectRefusal(await generate(["--model", "./no/such/folder"]), 66, "no/such/folder");
  });

  test("config.json", async () => {
    using folder = temporaryFolder();
    expectRefusal(await generate(["--model", folder.path]), 66, "config.json");
  });

  test("the weights", async () => {
    using folder = temporaryFolder();
    for (const name of ["config.json", "tokenizer.json"]) cpSync(join(MODEL, name), folder.file(name));
    expectRefusal(await generate(["--model", folder.path]), 66, folder.path);
  });

  test("the prompts file, or it is a folder", async () => {
    using folder = temporaryFolder();
    expectRefusal(await generate(["--file", folder.file("prompts.txt")]), 66, "prompts.txt");
    expectRefusal(await generate(["--file", folder.path]), 66, folder.path);
  });

  test("the configuration file", async () => {
    expectRefusal(await generate(["--config", "no-such.yaml"]), 66, "no-such.yaml");
  });
});

describe("65: the model is broken or not supported", () => {
  test.each([
    ["that refuses every conversation", "{{ raise_exception('no') }}", "renders no conversation: no"],
    [
      "without an end",
      "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
      "steps",
    ],
    ["that reaches for JavaScript", "{{ messages.constructor.constructor('return 1')() }}", "constructor"],
  ])("a chat template %s", async (_, template, reason) => {
    using folder = modelCopy({});
    writeFileSync(folder.file("chat_template.jinja"), template);
    expectRefusal(await generate(["--model", folder.path]), 65, "chat_template.jinja", reason);
  });

  test("a file that is a link to a device", async () => {
    using folder = modelCopy({});
    rmSync(folder.file("tokenizer_config.json"));
    symlinkSync("/dev/zero", folder.file("tokenizer_config.json"));
    expectRefusal(
      await generate(["--model", folder.path]),
      65,
      "tokenizer_config.json",
      "outside the model folder",
    );
  });

  test.each([
    ["a config that is not JSON", () => "{ not json", "JSON"],
    [
      "an unknown architecture",
      (c: object) => ({ ...c, architectures: ["MambaForCausalLM"] }),
      "config.json: architecture MambaForCausalLM",
    ],
    [
      "unknown quantisation",
      (c: object) => ({ ...c, quantization_config: { quant_method: "aqlm" } }),
      "aqlm",
    ],
    ["a field out of range", (c: object) => ({ ...c, num_hidden_layers: -1 }), "num_hidden_layers"],
    ["another width than the weights have", (c: object) => ({ ...c, intermediate_size: 512 }), "mlp"],
    ["fewer tokens than the tokenizer", (c: object) => ({ ...c, vocab_size: 4095 }), "4095"],
  ] as const)("%s", async (_, config, part) => {
    using folder = modelCopy({ config });
    expectRefusal(await generate(["--model", folder.path]), 65, part);
  });

  test("a truncated weight file", async () => {
    using folder = modelCopy({ weights: (file) => file });
    truncateSync(folder.file("model.safetensors"), 1_000_000);
    expectRefusal(await generate(["--model", folder.path]), 65, "model.safetensors");
  });

  test("a missing tensor is named", async () => {
    const rename = (file: Buffer) => {
      file.write("model.nurm.weight", file.indexOf("model.norm.weight"));
      return file;
    };
    using folder = modelCopy({ weights: rename });
    expectRefusal(await generate(["--model", folder.path]), 65, "model.norm.weight");
  });
});

test("69: there is no GPU", async () => {
  expectRefusal(await generate(["--device", "cuda"]), 69);
});

describe("70: the model computes no numbers", () => {
  const spoil = (file: Buffer) => {
    const [start, end] = tensorRange(file, "model.norm.weight");
    return file.fill(0xff, start, end);
  };

  test("a stream and a batch end with the error, and JSON holds it", async () => {
    using folder = modelCopy({ weights: spoil });
    const args = ["--model", folder.path, "--max-tokens", "4"];
    expectRefusal(await generate([...args, "One"]), 70, "finite");
    expectRefusal(await generate([...args, "One", "Two"]), 70, "finite");
    const result = await generate([...args, "One", "--json"]);
    expectRefusal(result, 70, "finite");
    const [completion] = JSON.parse(result.stdout).results[0].completions;
    expect(completion).toMatchObject({ finishReason: "error", tokenIds: [] });
    expect(completion.error).toContain("finite");
  });
});
