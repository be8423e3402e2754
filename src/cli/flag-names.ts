import { ChatTemplateError, ConfigError, InvalidRequestError, messageOf } from "../base/errors.ts";
import { ENGINE_FLAGS, REPLICA_FLAGS } from "./engine-flags.ts";
import type { FlagSpec } from "./flag-table.ts";
import { SAMPLING_FLAGS } from "./sampling-flags.ts";
import { SERVER_FLAGS } from "./server-flags.ts";

/** `--max-tokens` for `maxTokens`, and so on: the flag of each option and parameter. */
const FLAGS: ReadonlyMap<string, string> = new Map(
  Object.entries<FlagSpec>({ ...ENGINE_FLAGS, ...REPLICA_FLAGS, ...SERVER_FLAGS, ...SAMPLING_FLAGS }).map(
    ([name, [flags]]) => [name, flags.match(/--[\w-]+/)![0].replace("--no-", "--")],
  ),
);

const flagOf = (name: string) => FLAGS.get(name) ?? name;

/** The message of an error, with flags in place of the names of options and parameters. */
export function messageInFlags(error: unknown): string {
  const message = messageOf(error);
  // What a template says is the model's own.
  if (error instanceof ChatTemplateError) return message;
  const subject =
    error instanceof ConfigError
      ? error.option
      : error instanceof InvalidRequestError
        ? error.param
        : undefined;
  return message
    .replace(/^\w+\b/, (word) => (word === subject ? flagOf(word) : word))
    .replace(/\b(\w+): "(\w+)"/g, (text, name, value) =>
      FLAGS.has(name) ? `${flagOf(name)} ${value}` : text,
    )
    .replace(/(?<![\w"-])[a-z]+(?:[A-Z][a-z]*)+\b/g, flagOf);
}
