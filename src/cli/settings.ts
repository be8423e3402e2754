import { type Command, InvalidArgumentError, Option } from "commander";
import { ConfigError, messageOf } from "../base/errors.ts";
import { isJsonObject } from "../base/json-object.ts";
import { readTextFile } from "./text-file.ts";
import { unsupportedFlag } from "./vllm-flags.ts";

/** Environment variables that set an option besides `OCTAVO_<FLAG>`, which comes first. */
const ALIASES: Readonly<Record<string, readonly string[]>> = { "api-key": ["VLLM_API_KEY"] };

/** Adds `--config`, the file that `applySettings` reads. */
export function addConfigFlag(command: Command): void {
  const text = "YAML or JSON file of flags, e.g. max-model-len: 4096; OCTAVO_<FLAG> and flags override it";
  command.addOption(new Option("--config <file>", text).helpGroup("Options:"));
}

/**
 * Sets each option that the command line leaves out: from the environment (`OCTAVO_MAX_MODEL_LEN` for
 * `--max-model-len`), else from the file of `--config`.
 * @throws ConfigError for a value that its flag would refuse, and for an unknown name in the file;
 * ModelNotFoundError for a file that cannot be read.
 */
export function applySettings(command: Command): void {
  const options = new Map(command.options.map((option) => [settingName(option), option]));
  for (const [name, option] of options) {
    const variables = [`OCTAVO_${name.replaceAll("-", "_").toUpperCase()}`, ...(ALIASES[name] ?? [])];
    const variable = variables.find((variable) => process.env[variable]);
    if (variable !== undefined) setOption(command, option, process.env[variable], "env", variable);
  }
  const file: string | undefined = command.getOptionValue("config");
  if (file === undefined) return;
  const seen = new Set<string>();
  for (const [key, value] of Object.entries(readSettings(file))) {
    const name = key.replaceAll("_", "-");
    const option = name === "config" ? undefined : options.get(name);
    if (option === undefined)
      throw new ConfigError(key, `${file}: ${unsupportedFlag(`--${name}`) ?? `unknown option "${key}"`}`);
    if (seen.has(name)) throw new ConfigError(key, `${file}: "${key}" is given twice`);
    seen.add(name);
    setOption(command, option, value, "config", `${file}: ${key}`);
  }
}

/** `max-model-len` for `--max-model-len`, `x` for `--no-x`. */
function settingName(option: Option): string {
  return option.negate ? option.name().replace(/^no-/, "") : option.name();
}

/** Sets the option unless something stronger did. `origin` is how messages name the value. */
function setOption(command: Command, option: Option, value: unknown, source: string, origin: string): void {
  const name = option.attributeName();
  const present = command.getOptionValueSource(name);
  if (present !== undefined && present !== "default") return;
  try {
    command.setOptionValueWithSource(name, read(option, value), source);
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    throw new ConfigError(name, `${origin}: ${error.message.replace(/\.$/, "")}`, { cause: error });
  }
}

/** A value of the environment (text) or of a file (anything) as the flag would have it. */
function read(option: Option, value: unknown): unknown {
  if (option.isBoolean() || option.negate) {
    if (typeof value === "boolean") return value;
    if (/^(?:1|true|yes|on)$/i.test(String(value))) return true;
    if (/^(?:0|false|no|off)$/i.test(String(value))) return false;
    throw new InvalidArgumentError(`${shown(value)} is not true or false`);
  }
  if (value === null) throw new InvalidArgumentError("the value is missing");
  const texts = (Array.isArray(value) ? value : [value]).map((entry) =>
    typeof entry === "object" ? JSON.stringify(entry) : String(entry),
  );
  if (texts.length > 1 && !option.variadic && option.parseArg === undefined)
    throw new InvalidArgumentError(`${shown(value)} is a list`);
  const { parseArg } = option;
  if (parseArg === undefined) return texts[0];
  return texts.reduce<unknown>((previous, text) => parseArg(text, previous), undefined);
}

function shown(value: unknown): string {
  return JSON.stringify(value) ?? String(value);
}

function readSettings(file: string): object {
  const text = readTextFile(file);
  let settings: unknown;
  try {
    settings = file.endsWith(".json") ? JSON.parse(text) : Bun.YAML.parse(text);
  } catch (cause) {
    throw new ConfigError("config", `${file}: ${messageOf(cause)}`, { cause });
  }
  if (!isJsonObject(settings)) throw new ConfigError("config", `${file} must map flags to values`);
  return settings;
}
