import { expect, setDefaultTimeout, test } from "bun:test";
import {
  ChatTemplateError,
  ConfigError,
  DeviceError,
  InvalidRequestError,
} from "../../../src/base/errors.ts";
import { messageInFlags } from "../../../src/cli/flag-names.ts";

setDefaultTimeout(300_000);

test.each([
  [new InvalidRequestError("n", "n must be 1"), "--n must be 1"],
  [
    new InvalidRequestError("minTokens", "minTokens 9 is above maxTokens 3"),
    "--min-tokens 9 is above --max-tokens 3",
  ],
  [
    new ConfigError("servedModelNames", "servedModelNames must not be empty"),
    "--served-model-name must not be empty",
  ],
  [new ConfigError("enablePrefixCaching", "enablePrefixCaching: no"), "--enable-prefix-caching: no"],
  [new ConfigError("dtype", 'float16 needs device: "cuda"'), "float16 needs --device cuda"],
  [
    new DeviceError("too little within gpuMemoryUtilization 0.9"),
    "too little within --gpu-memory-utilization 0.9",
  ],
  // Only the name at fault is replaced among common words.
  [new InvalidRequestError("prompt", "the prompt has no seed of port"), "the prompt has no seed of port"],
  [new ConfigError("seed", '--seed "x" is no integer'), '--seed "x" is no integer'],
  [
    new ConfigError("revision", 'revision "maxTokens" is not a branch'),
    '--revision "maxTokens" is not a branch',
  ],
  [new ChatTemplateError("maxTokens is undefined"), "maxTokens is undefined"],
  [new Error("toString is not a function"), "toString is not a function"],
])("%#: flags in place of properties", (error, message) => {
  expect(messageInFlags(error)).toBe(message);
});
