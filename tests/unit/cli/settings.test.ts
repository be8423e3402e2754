import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { ConfigError } from "../../../src/base/errors.ts";
import { createCommand } from "../../../src/cli/command.ts";
import { addEngineFlags, engineOptions } from "../../../src/cli/engine-flags.ts";
import { addSamplingFlags, samplingParams } from "../../../src/cli/sampling-flags.ts";
import { addServerFlags, serverOptions } from "../../../src/cli/server-flags.ts";
import { addConfigFlag, applySettings } from "../../../src/cli/settings.ts";
import { temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

interface Given {
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Contents of the configuration file. */
  readonly file?: string;
  readonly fileName?: string;
}

/** Parses as a command with all flags would. */
function settle({ args = [], env = {}, file, fileName = "octavo.yaml" }: Given) {
  using folder = temporaryFolder();
  const command = addServerFlags(addSamplingFlags(addEngineFlags(createCommand("test"))));
  addConfigFlag(command);
  command.option("--temperature-default <value>", "has a default", "0.5");
  command.action(() => {});
  const config = file === undefined ? [] : ["--config", folder.file(fileName)];
  if (file !== undefined) writeFileSync(folder.file(fileName), file);
  command.parse([...args, ...config], { from: "user" });
  const before = { ...process.env };
  Object.assign(process.env, env);
  try {
    applySettings(command);
  } finally {
    for (const name of Object.keys(env)) delete process.env[name];
    Object.assign(process.env, before);
  }
  return {
    engine: engineOptions(command),
    sampling: samplingParams(command),
    server: serverOptions(command),
    withDefault: command.getOptionValue("temperatureDefault"),
  };
}

describe("a flag, else the environment, else the file, else the default", () => {
  const FILE = "max-model-len: 1\ntemperature-default: 0.1";
  const ENV = { OCTAVO_MAX_MODEL_LEN: "2", OCTAVO_TEMPERATURE_DEFAULT: "0.2" };
  const FLAGS = ["--max-model-len", "3", "--temperature-default", "0.3"];
  test.each<[Given, number | undefined, string]>([
    [{}, undefined, "0.5"],
    [{ file: FILE }, 1, "0.1"],
    [{ env: ENV }, 2, "0.2"],
    [{ file: FILE, env: ENV }, 2, "0.2"],
    [{ args: FLAGS }, 3, "0.3"],
    [{ args: FLAGS, file: FILE, env: ENV }, 3, "0.3"],
    [{ args: FLAGS, env: ENV }, 3, "0.3"],
    [{ args: FLAGS, file: FILE }, 3, "0.3"],
    [{ env: { OCTAVO_MAX_MODEL_LEN: "" } }, undefined, "0.5"],
  ])("%j", (given, maxModelLen, withDefault) => {
    const settled = settle(given);
    expect(settled.engine.maxModelLen).toBe(maxModelLen);
    expect(settled.withDefault).toBe(withDefault);
  });

  test("a switch can be turned both ways at every level", () => {
    const file = "enable_prefix_caching: false";
    expect(settle({ file }).engine.enablePrefixCaching).toBe(false);
    const env = { OCTAVO_ENABLE_PREFIX_CACHING: "yes" };
    expect(settle({ file, env }).engine.enablePrefixCaching).toBe(true);
    expect(settle({ env, args: ["--no-enable-prefix-caching"] }).engine.enablePrefixCaching).toBe(false);
    expect(settle({ file, args: ["--enable-prefix-caching"] }).engine.enablePrefixCaching).toBe(true);
    expect(settle({ env: { OCTAVO_ENFORCE_EAGER: "0" } }).engine.enforceEager).toBe(false);
    expect(settle({}).engine).toEqual({});
  });

  test("VLLM_API_KEY serves for --api-key, after OCTAVO_API_KEY", () => {
    const env = { VLLM_API_KEY: "a" };
    expect(settle({ env }).server.apiKeys).toEqual(["a"]);
    expect(settle({ env: { ...env, OCTAVO_API_KEY: "b" } }).server.apiKeys).toEqual(["b"]);
    expect(settle({ env, args: ["--api-key", "c", "--api-key", "d"] }).server.apiKeys).toEqual(["c", "d"]);
  });
});

describe("the configuration file", () => {
  test("takes both spellings, numbers, texts, switches and lists, as YAML or JSON", () => {
    const values = {
      ...{ max_model_len: 64, "gpu-memory-utilization": 0.5, device: "cpu", stop: ["a", "b"], seed: 7 },
      ...{ "allowed-origins": ["https://a.example", "https://b.example"], "shutdown-timeout": 2.5 },
      ...{ "served-model-name": "tiny", enforce_eager: true },
    };
    const expected = {
      engine: { maxModelLen: 64, gpuMemoryUtilization: 0.5, device: "cpu", enforceEager: true },
      sampling: { stop: ["a", "b"], seed: 7n },
      server: {
        ...{ corsOrigins: ["https://a.example", "https://b.example"], drainSeconds: 2.5 },
        servedModelNames: ["tiny"],
      },
    } as const;
    expect(settle({ file: JSON.stringify(values), fileName: "octavo.json" })).toMatchObject(expected);
    expect(settle({ file: Bun.YAML.stringify(values) })).toMatchObject(expected);
  });

  test.each([
    ["an unknown name", "max-model-length: 5", "max-model-length"],
    ["another file", "config: other.yaml", "config"],
    ["a name twice", "max-model-len: 5\nmax_model_len: 6", "twice"],
    ["a value its flag would refuse", "max-model-len: long", '"long" is not a number'],
    ["a switch that is neither", "enforce-eager: maybe", "true or false"],
    ["a list for one value", "device: [cpu, cuda]", "list"],
    ["no value", "device:", "missing"],
    ["what Octavo does not do", "speculative-config: fp8", "--speculative-config is not supported yet"],
    ["no mapping", "- device", "map"],
    ["no YAML", "a: [1", "octavo.yaml"],
  ])("refuses %s", (_, file, part) => {
    const error = thrown(() => settle({ file })) as ConfigError;
    expect(error).toBeInstanceOf(ConfigError);
    expect(error.message).toContain(part);
    expect(error.message).not.toContain("\n");
  });

  test("names the variable whose value is wrong", () => {
    const error = thrown(() => settle({ env: { OCTAVO_PORT: "http" } })) as ConfigError;
    expect(error.message).toBe('OCTAVO_PORT: "http" is not a number');
  });
});

test("--allowed-origins also takes vLLM's JSON list", () => {
  expect(settle({ args: ["--allowed-origins", '["*"]'] }).server.corsOrigins).toEqual(["*"]);
});
