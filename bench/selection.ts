import { ConfigError } from "../src/base/errors.ts";

/**
 * Chooses entries by `--only`, whose texts the names of entries contain; all without it.
 * @returns whether an entry is chosen, by its name.
 * @throws ConfigError for a text that no name contains.
 */
export function selection(
  only: readonly string[] | undefined,
  names: readonly string[],
): (name: string) => boolean {
  if (only === undefined) return () => true;
  for (const text of only) {
    if (!names.some((name) => name.includes(text)))
      throw new ConfigError("only", `--only "${text}" matches nothing: --list prints what there is`);
  }
  return (name) => only.some((text) => name.includes(text));
}
