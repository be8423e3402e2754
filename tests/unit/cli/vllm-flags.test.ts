import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { ConfigError } from "../../../src/base/errors.ts";
import { createCommand } from "../../../src/cli/command.ts";
import { addEngineFlags, engineOptions } from "../../../src/cli/engine-flags.ts";
import { addSamplingFlags, samplingParams } from "../../../src/cli/sampling-flags.ts";
import { addServerFlags, serverOptions } from "../../../src/cli/server-flags.ts";
import { readVllmArguments } from "../../../src/cli/vllm-arguments.ts";
import { effectlessFlagNotes, unsupportedFlag } from "../../../src/cli/vllm-flags.ts";
import { thrown } from "../../support.ts";

setDefaultTimeout(300_000);

/** Reads a line of `octavo serve`. */
function serve(line: string) {
  const command = addServerFlags(addSamplingFlags(addEngineFlags(createCommand("serve"))));
  command.argument("[model]").action(() => {});
  const [, ...args] = readVllmArguments(["serve", ...line.split(" ")]);
  command.parse(args, { from: "user" });
  return {
    ...{ engine: engineOptions(command), sampling: samplingParams(command), server: serverOptions(command) },
    ...{ model: command.args[0], notes: () => effectlessFlagNotes(command) },
  };
}

describe("flags of vLLM that change nothing here", () => {
  test.each([
    "--trust-remote-code",
    "--no-trust-remote-code",
    "--enable-chunked-prefill",
    "--no-enable-chunked-prefill",
    "--disable-log-stats",
    "--swap-space 4",
    "--async-scheduling",
    "--uvicorn-log-level warning",
    "--scheduling-policy fcfs",
    "--calculate-kv-scales",
    "--pipeline-parallel-size 1",
    "--distributed-executor-backend mp",
    "--max-seq-len-to-capture 8192",
    "--disable-custom-all-reduce",
    "--limit-mm-per-prompt {}",
    "--tokenizer-mode auto",
    "--prefix-caching-hash-algo sha256",
    "--compilation-config {}",
    "--disable-frontend-multiprocessing",
    "--no-enable-lora",
    "--no-enable-auto-tool-choice",
  ])("%s is accepted with a line that says why", (line) => {
    const { engine, server, notes } = serve(line);
    expect([engine, server]).toEqual([{}, {}]);
    const [flag] = line.split(" ");
    expect(notes()).toEqual([expect.stringMatching(new RegExp(`^${flag} has no effect: \\w`))]);
  });

  test("a list of values ends with the next flag", () => {
    const { engine, notes } = serve("--cudagraph-capture-sizes 1 2 4 --max-num-seqs 8");
    expect([engine, notes()]).toEqual([{ maxNumSeqs: 8 }, [expect.stringContaining("capture-sizes")]]);
  });

  test.each([
    "--pipeline-parallel-size 2",
    "--scheduling-policy priority",
    "--tokenizer-mode slow",
    "--runner pooling",
    "--response-role bot",
    "--chat-template-content-format string",
    "--logprobs-mode processed_logprobs",
  ])("%s would change something, and is refused", (line) => {
    const error = thrown(serve(line).notes) as ConfigError;
    expect(error).toBeInstanceOf(ConfigError);
    expect(error.message).toBe(`${line} is not supported yet`);
  });

  test("none is given: no line", () => {
    expect(serve("model --port 1").notes()).toEqual([]);
  });
});

describe("flags of vLLM that change results", () => {
  test.each([
    ...["--enable-lora", "--speculative-config", "--reasoning-config"],
    ...["--hf-overrides", "--override-generation-config", "--enable-force-include-usage"],
  ])("%s is refused by name", (flag) => {
    expect(unsupportedFlag(flag)).toBe(`${flag} is not supported yet`);
  });

  test("a remedy is named where there is one; other flags are not vLLM's", () => {
    expect(unsupportedFlag("--hf-token")).toBe("--hf-token is not supported: set HF_TOKEN");
    expect(unsupportedFlag("--ssl-keyfile")).toContain("proxy");
    expect(unsupportedFlag("--no-such-flag")).toBeUndefined();
  });
});

describe("vLLM's spellings", () => {
  test.each([
    ["--max_model_len 8", "--max-model-len 8"],
    ["--served-model-name=a_b --max_num_seqs=3", "--served-model-name=a_b --max-num-seqs=3"],
    ["-tp 2 -pp=1", "--tensor-parallel-size 2 --pipeline-parallel-size=1"],
    ["-O3 -O 2 -cc.mode=3", "--compilation-config=3 --compilation-config 2 --compilation-config=3"],
    ["--compilation-config.pass_config.fuse 1", "--compilation-config 1"],
    ["-q fp8 -m model -tpx", "-q fp8 -m model -tpx"],
    ["--temperature=0.5 -- --a_b -tp", "--temperature=0.5 -- --a_b -tp"],
  ])("%s", (given, read) => {
    expect(readVllmArguments(given.split(" ")).join(" ")).toBe(read);
  });

  test("several names or keys after one flag, where the model came before", () => {
    const { model, server } = serve("./m --served-model-name a b --port 1 --api-key x y");
    expect(model).toBe("./m");
    expect(server).toEqual({ servedModelNames: ["a", "b"], port: 1, apiKeys: ["x", "y"] });
    expect(serve("--served-model-name a ./m")).toMatchObject({
      ...{ model: "./m", server: { servedModelNames: ["a"] } },
    });
  });

  test.each([
    ["1k", 1000],
    ["1K", 1024],
    ["25.6k", 25_600],
    ["0.3m", 300_000],
    ["2M", 2 ** 21],
    ["0.01g", 1e7],
    ["4096", 4096],
  ])("--max-model-len %s", (text, tokens) => {
    expect(serve(`--max-model-len ${text}`).engine).toEqual({ maxModelLen: tokens });
  });

  test("auto and -1 leave the length to the engine; binary units take no decimals", () => {
    expect(serve("--max-model-len auto").engine).toEqual({});
    expect(serve("--max-model-len -1").engine).toEqual({});
    for (const text of ["1.5K", "k", "1x", "1kk", "", "1e3k"])
      expect(() => serve(`--max-model-len ${text}`)).toThrow("--max-model-len");
    expect(serve("--kv-cache-memory-bytes 2G --max-num-batched-tokens 8k").engine).toEqual({
      ...{ kvCacheMemoryBytes: 2 ** 31, maxNumBatchedTokens: 8000 },
    });
  });

  test.each(["auto", "fp8", "fp8_e4m3"])("--kv-cache-dtype %s", (kvCacheDtype) => {
    expect(serve(`--kv-cache-dtype ${kvCacheDtype}`).engine as object).toEqual({ kvCacheDtype });
  });

  test("other names of dtypes, formats and the request log", () => {
    expect(serve("--dtype half --load-format safetensors").engine).toEqual({
      ...{ dtype: "float16", loadFormat: "auto" },
    });
    for (const flag of ["--disable-log-requests", "--disable-uvicorn-access-log"])
      expect(serve(flag).server).toEqual({ logRequests: false });
    expect(serve("--enable-log-requests").server).toEqual({ logRequests: true });
  });
});

test("every switch has its opposite", () => {
  const { engine, sampling, server } = serve(
    "--no-enforce-eager --no-skip-tokenizer-init --no-ignore-eos --no-log-prompts --no-allow-unauthenticated",
  );
  expect(engine).toEqual({ enforceEager: false, skipTokenizerInit: false });
  expect(sampling).toEqual({ ignoreEos: false });
  expect(server).toEqual({ logPrompts: false, allowUnauthenticated: false });
  expect(serve("--enforce-eager --no-enforce-eager").engine).toEqual({ enforceEager: false });
});
